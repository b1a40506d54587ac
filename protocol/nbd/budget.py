"""How many NBD connections may be open to one host.

xapi-nbd closes every connection beyond its 16 (for all clients of the host together) without a word (xen-api
ocaml/nbd/lib/consts.ml), so the limit has to be kept on our side: by all disks of this process, and by all processes
of this user on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import NbdConnectError

# Asking for a slot that another process holds: the first and the longest pause between two tries, in seconds.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


def runtime_directory() -> Path:
    """Where this user's slots are kept: a folder that no other user can write to."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "mover-nbd"
    return Path(tempfile.gettempdir()) / f"mover-nbd-{os.getuid()}"


class Lease:
    """The right to one connection. Give it back with `release`, or by leaving the context."""

    def __init__(self, budget: Budget, host: str, descriptor: int) -> None:
        self._budget = budget
        self._host = host
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the right back. Harmless if done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the kernel drops the lock
            self._descriptor = -1
            self._budget._leave(self._host)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Host:
    """Who has a connection and who waits, in this process. Those without any connection yet go first."""

    def __init__(self) -> None:
        self.taken = 0
        self.first: deque[asyncio.Future[None]] = deque()
        self.more: deque[asyncio.Future[None]] = deque()

    def wake(self) -> bool:
        """Hand a place that became free to the next one who still waits."""
        for queue in (self.first, self.more):
            while queue:
                waiter = queue.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return True
        return False


class Budget:
    """At most `limit` connections per host. The default leaves some of the server's 16 to others.

    Each connection holds a lock on one of `limit` files in `directory`; the kernel releases it when a process dies.
    """

    def __init__(self, limit: int = 12, directory: Path | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a budget needs at least one connection per host, got {limit}")
        self._limit = limit
        self._directory = directory or runtime_directory()
        self._hosts: dict[str, _Host] = {}

    async def acquire(self, host: str, timeout: float | None = None, *, first: bool = True) -> Lease:
        """Wait for a place at `host`. `first`: this disk has no connection yet, and goes before those that have.

        Raises `NbdConnectError` if there is none within `timeout` seconds, `OSError` if the folder cannot be used.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._enter(host, first)
                try:
                    return Lease(self, host, await self._lock(host))
                except BaseException:
                    self._leave(host)
                    raise
        except TimeoutError:
            reason = f"no free connection (of {self._limit}) in {timeout:g} s"
            raise NbdConnectError(host, reason) from None

    async def _enter(self, host: str, first: bool) -> None:
        """Take a place among this process's connections; in order of arrival."""
        state = self._hosts.setdefault(host, _Host())
        if state.taken < self._limit:
            state.taken += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (state.first if first else state.more).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave(host)  # it was ours already
            raise

    def _leave(self, host: str) -> None:
        state = self._hosts[host]
        if not state.wake():
            state.taken -= 1
            if not state.taken:
                del self._hosts[host]

    async def _lock(self, host: str) -> int:
        """Lock one of the host's files, waiting while other processes hold them all. Returns the descriptor."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._directory.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._directory} belongs to somebody else")
        name = hashlib.sha256(host.encode()).hexdigest()[:16]
        pause = _FIRST_PAUSE
        while True:
            for slot in range(self._limit):
                descriptor = os.open(self._directory / f"{name}-{slot}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                os.close(descriptor)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
