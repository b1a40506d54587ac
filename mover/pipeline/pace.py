"""A limit on bytes a second, shared by everything that reads."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Lets `rate` bytes a second through (0: no limit), averaged over about a second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def spend(self, size: int) -> None:
        """Account for `size` bytes and wait until they fit the rate."""
        if self._rate <= 0:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 1.0) + size / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
