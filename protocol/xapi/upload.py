"""The body of an upload, as aiohttp pulls it.

The server answers `200` as soon as it has read the request's head, and `302` instead where another host has to do the
work. So the head goes out alone, and the body waits for that answer: a redirect costs nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from protocol.errors import TransferError

# Seconds to wait for the early answer. A proxy in between may want the body first.
_ANSWER = 60.0

Piece = bytes | bytearray | memoryview


class Upload:
    """`length` bytes from `body`, sent once. `tick` is called whenever the receiver has taken something."""

    def __init__(self, what: str, length: int, body: AsyncIterator[Piece], tick: Callable[[], None]) -> None:
        self.length = length
        self.sent = 0
        self.started = False
        self.error: Exception | None = None
        self.on_error: Callable[[Exception], None] | None = None
        self._what = what
        self._body = body
        self._tick = tick
        self._head_sent = False
        self._answered = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def complete(self) -> bool:
        """Whether every byte was handed over to the connection."""
        return self.sent == self.length

    def answered(self) -> None:
        """Let the body go: the server has taken the request."""
        self._answered.set()

    async def settle(self) -> None:
        """Wait until nobody is inside `body` any more: whoever owns it may then close it."""
        await self._idle.wait()

    def __aiter__(self) -> Upload:
        """Begin an attempt: aiohttp asks once for each request."""
        self._head_sent = False
        return self

    async def __anext__(self) -> bytes:
        if not self._head_sent:
            # An empty piece makes aiohttp send the request's head, which it would keep for the first bytes else.
            self._head_sent = True
            return b""
        if not self.started:
            await self._wait_for_answer()
        try:
            return await self._next_piece()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            if self.on_error is not None:
                self.on_error(error)
            raise

    async def _wait_for_answer(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER):
                await self._answered.wait()
        except TimeoutError:
            pass
        self.started = True

    async def _next_piece(self) -> bytes:
        self._tick()
        self._idle.clear()
        try:
            # A copy, because the connection may still be sending when the owner of the buffer gets its turn again.
            piece = bytes(await anext(self._body))
        except StopAsyncIteration:
            if not self.complete:
                raise TransferError(self._what, f"the data ended after {self.sent} of {self.length} bytes") from None
            raise
        finally:
            self._idle.set()
        self.sent += len(piece)
        if self.sent > self.length:
            raise TransferError(self._what, f"more data than the {self.length} bytes announced")
        return piece
