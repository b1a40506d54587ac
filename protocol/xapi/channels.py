"""A few connections to one host at a time, each used by one call, so that calls need not wait for each other.

The official client is synchronous and not thread-safe: each call has a connection and a thread of its own for its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from protocol.errors import PoolUnreachableError
from protocol.xapi.address import Address
from protocol.xapi.channel import Channel
from protocol.xapi.trust import Trust

T = TypeVar("T")

# A host answers many clients at once, and each connection costs it a thread.
_AT_ONCE = 4
# Seconds for what still has to be done after a cancellation.
AFTERMATH = 5.0


class Channels:
    """Connections to `address`, verified by `trust`, a few at once."""

    def __init__(self, address: Address, trust: Trust, connect_timeout: float) -> None:
        self.address = address
        self.trust = trust
        self.connect_timeout = connect_timeout
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._executor = ThreadPoolExecutor(_AT_ONCE, "xapi-calls")
        self._idle: list[Channel] = []
        self._busy: set[Channel] = set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Channel]:
        """A connection for one call: the one that was used last, or a new one."""
        async with self._room:
            channel = self._idle.pop() if self._idle else Channel(self.address, self.trust, self.connect_timeout)
            self._busy.add(channel)
            try:
                yield channel
            finally:
                # One that was abandoned is hung up by the thread that is still in it.
                if channel in self._busy:
                    self._busy.remove(channel)
                    self._put_back(channel)

    def go_to(self, address: Address) -> None:
        """Connect to another host from now on."""
        self.address = address
        idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def _put_back(self, channel: Channel) -> None:
        if channel.address == self.address:
            self._idle.append(channel)
        else:
            channel.close()

    async def in_thread(
        self, channel: Channel, work: Callable[[], T], silence: float, landed: list[Any] | None = None
    ) -> T:
        """Do blocking work with `channel`. `silence` in seconds is the longest that its host may say nothing.

        Work that is cancelled before it has begun never begins; with `landed`, what has begun is still given a moment,
        and its result left in there. Raises `PoolUnreachableError` if it takes far longer than `silence`, and what
        `work` raises.
        """
        submitted = self._executor.submit(work)
        running = asyncio.wrap_future(submitted)
        try:
            # A server that sends a byte now and then never falls silent, so the whole is bounded too.
            async with asyncio.timeout(2 * (self.connect_timeout + silence)):
                result = await asyncio.shield(running)
        except TimeoutError:
            self._abandon(channel, submitted, running)
            raise PoolUnreachableError(str(channel.address), "no complete answer in time") from None
        except asyncio.CancelledError:
            if landed is not None and not submitted.cancel():
                await asyncio.wait({running}, timeout=AFTERMATH)
                if running.done() and not running.cancelled() and running.exception() is None:
                    landed.append(running.result())
            self._abandon(channel, submitted, running)
            raise
        if landed is not None:
            landed.append(result)
        return result

    def _abandon(self, channel: Channel, submitted: Future[T], running: asyncio.Future[T]) -> None:
        """Free the thread from a call nobody waits for any more."""
        # One that still waits for a thread must not be sent behind the back of whoever gave it up. That is asked of
        # the executor itself: `running` would tell it a turn of the event loop later.
        if submitted.cancel() or running.done():
            return
        self._busy.discard(channel)
        channel.abort()

        def end(ended: asyncio.Future[T]) -> None:
            channel.close()
            if not ended.cancelled():
                ended.exception()

        running.add_done_callback(end)

    def close(self) -> None:
        """Hang up, whatever is under way."""
        for channel in self._busy:
            channel.abort()
        idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()
        self._executor.shutdown(wait=False)
