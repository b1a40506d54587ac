"""A limit on bytes a second, shared by everything that reads."""

from __future__ import annotations

import asyncio
import time
from threading import Lock


class Pace:
    """Lets `rate` bytes a second through (0: no limit), averaged over about a second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._lock = Lock()

    def reserve(self, size: int) -> float:
        """Account for `size` bytes: how many seconds to wait until they fit the rate. Any thread may call."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 1.0) + size / self._rate
            return max(0.0, self._free_at - now)

    async def spend(self, size: int) -> None:
        """Account for `size` bytes and wait until they fit the rate."""
        wait = self.reserve(size)
        if wait > 0:
            await asyncio.sleep(wait)
