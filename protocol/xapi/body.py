"""The body of a download, received where it is wanted: by whoever reads, into a buffer of his own.

aiohttp copies a body twice before it hands it out, in pieces of the size that a socket has at hand. A body that ends
with its connection is nothing but bytes once its head is read, as all large ones of the data handlers are, so the
connection is taken over then: the socket fills the reader's buffer, and where it is not TLS, the event loop is asked
only if nothing is there yet. What has a length or a framing of its own stays with aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

import aiohttp

# So many bytes are taken one after the other without a turn of the event loop: others have work there, too.
_AT_ONCE = 4 << 20


class Body(Protocol):
    """What comes after the head of a response. One reader at a time."""

    async def receive(self, view: memoryview, least: int) -> int:
        """Fill at least `least` bytes of `view` and return how many; fewer only at the end.

        Raises `OSError` or aiohttp's `ClientError` if the connection broke (what came before that is given out
        first), `TimeoutError` after a silence, and what `fail` was told.
        """
        ...

    def fail(self, error: Exception) -> None:
        """Have whoever reads, now or later, fail with `error`."""
        ...


def body_of(response: aiohttp.ClientResponse, silence: float) -> Body:
    """The body of a response of which nothing was read. `silence` in seconds is the longest without a byte."""
    connection = response.connection
    transport = None if connection is None else connection.transport
    framed = {"Content-Length", "Transfer-Encoding", "Content-Encoding"} & response.headers.keys()
    if transport is None or framed or response.content.exception() is not None:
        return _Framed(response.content)
    return _taken_over(transport, response.content, silence)


def _taken_over(transport: asyncio.Transport, content: aiohttp.StreamReader, silence: float) -> _TakenOver:
    start = bytearray()
    # Reading may make aiohttp parse what it had put aside, so there is more than one piece.
    while piece := content.read_nowait():
        start += piece
    transport.pause_reading()
    body = _TakenOver(transport, bytes(start), silence, ended=content.at_eof())
    transport.set_protocol(body)
    return body


class _TakenOver(asyncio.BufferedProtocol):
    """Reads only while somebody waits for bytes, so that no buffer is written to that was given back."""

    def __init__(self, transport: asyncio.Transport, start: bytes, silence: float, *, ended: bool) -> None:
        self._transport = transport
        self._socket = _socket_of(transport)
        self._at_once = 0
        self._former = transport.get_protocol()
        self._start = memoryview(start)
        self._silence = silence
        self._ended = ended
        self._lost: Exception | None = None
        self._failure: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # One timer that looks, when it is due, at when it should be: a timer for each wait takes longer than the wait.
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._view = memoryview(b"")
        self._filled = 0
        self._least = 0

    async def receive(self, view: memoryview, least: int) -> int:
        """See `Body`."""
        if self._at_once >= _AT_ONCE:
            self._at_once = 0
            await asyncio.sleep(0)
        self._filled = min(len(self._start), len(view))
        view[: self._filled] = self._start[: self._filled]
        self._start = self._start[self._filled :]
        if self._socket is not None and self._filled < least and not self._over:
            self._take(self._socket, view, least)
            self._at_once += self._filled
        if self._filled < least and not self._over:
            self._at_once = 0
            self._view, self._least = view, least
            self._waiter = self._loop.create_future()
            self._heard()
            try:
                self._transport.resume_reading()
                await self._waiter
            finally:
                self._pause()
                self._waiter = None
                self._view = memoryview(b"")
        if self._failure is not None:
            raise self._failure
        if self._lost is not None and not self._filled:
            raise self._lost
        return self._filled

    def _take(self, sock: socket.socket, view: memoryview, least: int) -> None:
        """What is there already: a turn of the event loop takes longer than reading it."""
        try:
            while self._filled < least:
                length = sock.recv_into(view[self._filled :])
                if not length:
                    self._ended = True
                    return
                self._filled += length
        except BlockingIOError:
            pass
        except OSError as error:
            self._ended, self._lost = True, error

    def fail(self, error: Exception) -> None:
        """See `Body`."""
        self._failure = self._failure or error
        self._wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        """What is still to be filled."""
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So much more is there."""
        self._filled += nbytes
        if self._filled >= self._least:
            self._pause()
            self._wake()
        else:
            self._heard()

    def eof_received(self) -> None:
        """The end, if nothing was lost; the connection is closed then."""
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, or a failure. aiohttp, which opened the connection, keeps count of it."""
        self._ended = True
        if exc is not None:
            self._lost = exc if isinstance(exc, OSError) else ConnectionError(str(exc))
        self._wake()
        if self._watch is not None:
            self._watch.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._former.connection_lost(exc)

    def _heard(self) -> None:
        """The silence that is put up with begins now."""
        self._deadline = self._loop.time() + self._silence
        if self._watch is None:
            self._watch = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        """It is time to look whether there was a byte since; while nobody waits for any, nothing is late."""
        self._watch = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._watch = self._loop.call_at(self._deadline, self._look)
        else:
            self._waiter.set_exception(TimeoutError())

    def _pause(self) -> None:
        # asyncio's transport for TLS is not to be asked for anything once it is closed.
        if not self._ended:
            self._transport.pause_reading()

    @property
    def _over(self) -> bool:
        return self._ended or self._failure is not None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _socket_of(transport: asyncio.Transport) -> socket.socket | None:
    """A socket of our own for what a connection in the clear receives."""
    if transport.get_extra_info("ssl_object") is not None:
        return None
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


class _Framed:
    """A body of which aiohttp knows where it ends."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._ahead = memoryview(b"")

    async def receive(self, view: memoryview, least: int) -> int:
        """See `Body`."""
        filled = 0
        while filled < least:
            if not self._ahead:
                try:
                    piece, boundary = await self._content.readchunk()
                except (aiohttp.ClientError, OSError):
                    if filled:
                        break
                    raise
                # Nothing is also what aiohttp gives where a chunk ends whose bytes were read before.
                if not piece and not boundary:
                    break
                self._ahead = memoryview(piece)
            length = min(len(self._ahead), len(view) - filled)
            view[filled : filled + length] = self._ahead[:length]
            self._ahead = self._ahead[length:]
            filled += length
        return filled

    def fail(self, error: Exception) -> None:
        """See `Body`."""
        self._content.set_exception(error)
