"""The server's end of a connection: bytes in, bytes and files out, in the clear or in TLS, on a non-blocking socket.

The kernel sends files by itself where the connection is plain; in TLS they pass through one buffer per connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

PIECE = 512 << 10
_ZEROS = bytes(PIECE)
_Result = TypeVar("_Result")


class FileRun(NamedTuple):
    """`length` bytes of an open file."""

    fd: int
    offset: int
    length: int


class ZeroRun(NamedTuple):
    """`length` zeros."""

    length: int


class MemoryRun(NamedTuple):
    """The bytes of a view."""

    view: memoryview

    @property
    def length(self) -> int:
        return len(self.view)


Run = FileRun | ZeroRun | MemoryRun


def cut(run: Run, start: int, length: int) -> Run:
    """`length` bytes of a run, from byte `start` of it on."""
    match run:
        case FileRun():
            return FileRun(run.fd, run.offset + start, length)
        case ZeroRun():
            return ZeroRun(length)
        case MemoryRun():
            return MemoryRun(run.view[start : start + length])


def pieces(run: Run, limit: int = PIECE) -> Iterator[Run]:
    """A run in parts of at most `limit` bytes."""
    for start in range(0, run.length, limit):
        yield cut(run, start, min(limit, run.length - start))


class Channel(Protocol):
    """A connection, as the server uses it. Everything raises OSError when the other side is gone."""

    async def receive(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        ...

    async def send(self, data: bytes, *, more: bool = False) -> None:
        """Send all of `data`; `more` follows at once, so it may wait for that."""
        ...

    async def send_run(self, run: Run) -> None:
        """Send content of the export."""
        ...

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Go on in TLS, as the server."""
        ...


class SocketChannel:
    """A `Channel` on a connected socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._secure = False
        self._buffer: memoryview | None = None

    async def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = await self._attempt(self._socket.recv, length - len(data), writing=False)
            if not more:
                raise ConnectionResetError("the client hung up")
            data += more
        return data

    async def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        view = memoryview(data)
        flags = socket.MSG_MORE if more and not self._secure else 0
        while view:
            # A record of TLS that could not be written has to be tried again with the same bytes: the view is the same.
            sent = await self._attempt(self._socket.send, view, flags, writing=True)
            view = view[sent:]

    async def send_run(self, run: Run) -> None:
        for piece in pieces(run):
            match piece:
                case ZeroRun():
                    await self.send(memoryview(_ZEROS)[: piece.length])
                case MemoryRun():
                    await self.send(piece.view)
                case FileRun() if self._secure:
                    await self.send(self._read(piece))
                case FileRun():
                    await self._send_file(piece)
            await asyncio.sleep(0)  # a client that keeps up would otherwise keep everybody else waiting

    async def start_tls(self, context: ssl.SSLContext) -> None:
        secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket, self._secure = secured, True
        await self._attempt(secured.do_handshake, writing=False)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def abort(self) -> None:
        """Cut the connection: the client gets a reset."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        finally:
            self._socket.close()

    async def _send_file(self, run: FileRun) -> None:
        offset, end = run.offset, run.offset + run.length
        out = self._socket.fileno()
        while offset < end:
            sent = await self._attempt(os.sendfile, out, run.fd, offset, end - offset, writing=True)
            if not sent:
                raise OSError("a file is shorter than it was")
            offset += sent

    def _read(self, run: FileRun) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE))
        view = self._buffer[: run.length]
        if os.preadv(run.fd, [view], run.offset) < run.length:
            raise OSError("a file is shorter than it was")
        return view

    async def _attempt(self, action: Callable[..., _Result], *arguments: object, writing: bool) -> _Result:
        """Try, and wait for the socket as often as the attempt would block."""
        while True:
            try:
                return action(*arguments)
            except ssl.SSLWantReadError:
                await self._ready(writing=False)
            except ssl.SSLWantWriteError:
                await self._ready(writing=True)
            except BlockingIOError:
                await self._ready(writing=writing)

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        ready: asyncio.Future[None] = loop.create_future()
        add(self._socket.fileno(), _wake, ready)
        try:
            await ready
        finally:
            remove(self._socket.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
