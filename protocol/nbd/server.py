"""An NBD server for one connection: reads, and where both sides like it structured replies and block status.

`serve` is the whole of it; who accepts connections, and what an export is, is for the caller. Two sets of manners:
modern ones, and those of XAPI's own server (xapi-project/nbd lib/server.ml), which knows nothing but reading and
disconnecting, wants multiples of 512 bytes, and ends a connection after the first error.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from errno import EINVAL, EOVERFLOW, EPERM
from typing import Protocol

from protocol.extent import Extent, split
from protocol.nbd.channel import PIECE, Channel, FileRun, MemoryRun, Run, SocketChannel, ZeroRun, cut, pieces
from protocol.nbd.handshake import (
    ALLOCATION_ID,
    CAN_MULTI_CONN,
    HAS_FLAGS,
    READ_ONLY,
    REQUEST_MAGIC,
    SEND_DF,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Close,
    Handshake,
    Listed,
    Manners,
    Open,
    Reply,
    StartTls,
)

__all__ = [
    "PIECE",
    "STEP",
    "Channel",
    "Export",
    "FileRun",
    "Listed",
    "Manners",
    "MemoryRun",
    "OpenExport",
    "RefusedError",
    "RequestError",
    "Run",
    "SocketChannel",
    "ZeroRun",
    "cut",
    "pieces",
    "serve",
]

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_READ, _WRITE, _DISC, _BLOCK_STATUS = 0, 1, 2, 7
_FLAG_DF, _FLAG_REQ_ONE = 1 << 2, 1 << 3
_DONE = 1
_OFFSET_DATA, _OFFSET_HOLE, _STATUS, _ERROR = 1, 2, 5, (1 << 15) + 1
_HOLE_AND_ZERO = 3
_SECTOR = 512
_MAX_REQUEST = 32 << 20
_MAX_STATUS = 4096
# A modern read is taken from the export in parts that end at multiples of this.
STEP = 2 << 20


class RefusedError(Exception):
    """There is no such export, or not for this client. The client does not learn why."""


class RequestError(Exception):
    """A request is to be answered with `errno` (NBD's numbers are those of errno.h)."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


class Export(Protocol):
    """What is served. Both methods are asked for ranges within `size` only, and may raise `RequestError`.

    With modern manners `runs` is asked for one part of a read after the other, none of which crosses a multiple of
    `STEP`; what it gave for one is no longer needed when it is asked for the next. `allocation` may answer for less.
    """

    @property
    def size(self) -> int: ...

    async def runs(self, offset: int, length: int) -> Iterable[Run]:
        """The content of a range, in order. OSError while they are sent ends the connection."""
        ...

    async def allocation(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """Lengths in order, and whether each is nothing but zeros without room of its own."""
        ...


OpenExport = Callable[[str], AbstractAsyncContextManager[Export]]


async def serve(
    channel: Channel, manners: Manners, open_export: OpenExport, context: ssl.SSLContext | None = None
) -> None:
    """Serve one client until either side has enough. `context` is needed where the manners force TLS.

    Raises OSError when the connection breaks; the caller closes the channel in any case.
    """
    async with AsyncExitStack() as stack:
        handshake = Handshake(manners)
        export = await _negotiate(channel, handshake, manners, open_export, context, stack)
        if export is None:
            return
        if manners.modern:
            await _serve_modern(channel, export, handshake)
        else:
            await _serve_xapi(channel, export)


async def _negotiate(
    channel: Channel,
    handshake: Handshake,
    manners: Manners,
    open_export: OpenExport,
    context: ssl.SSLContext | None,
    stack: AsyncExitStack,
) -> Export | None:
    await channel.send(handshake.greeting())
    while True:
        match handshake.take(await channel.receive(handshake.wanted)):
            case Reply(data):
                await channel.send(data)
            case StartTls(data):
                if context is None:
                    return None
                await channel.send(data)
                await channel.start_tls(context)
            case Close(data):
                await channel.send(data)
                return None
            case Open(name):
                export = await _open(channel, handshake, manners, stack, open_export(name))
                if export is not None or handshake.done:
                    return export


async def _open(
    channel: Channel,
    handshake: Handshake,
    manners: Manners,
    stack: AsyncExitStack,
    opening: AbstractAsyncContextManager[Export],
) -> Export | None:
    """The export, if reading is to begin. None and `handshake.done`: the connection is over."""
    attempt = await stack.enter_async_context(AsyncExitStack())
    try:
        export = await attempt.enter_async_context(opening)
    except RefusedError:
        refusal = handshake.refused()
        handshake.done = isinstance(refusal, Close)
        await channel.send(refusal.data)
        return None
    flags = HAS_FLAGS | READ_ONLY | (SEND_DF | CAN_MULTI_CONN if manners.modern else 0)
    await channel.send(handshake.opened(export.size, flags))
    if handshake.done:
        return export
    await attempt.aclose()  # the client only wanted to know
    return None


async def _serve_xapi(channel: Channel, export: Export) -> None:
    """One request after the other; the type is read together with the flags, and the first error is the last."""
    while True:
        magic, flags, low, handle, offset, length = _REQUEST.unpack(await channel.receive(_REQUEST.size))
        kind = flags << 16 | low
        if magic != REQUEST_MAGIC or kind == _DISC:
            return None
        if kind != _READ or offset % _SECTOR or length % _SECTOR:
            errno = EPERM if kind == _WRITE else EINVAL
            return await channel.send(_SIMPLE.pack(SIMPLE_REPLY_MAGIC, errno, handle))
        # A read past the end is noticed when it comes to that: after the header, and after what could be read.
        inside = length if offset + length <= export.size else max(0, export.size - offset) // PIECE * PIECE
        try:
            runs = await export.runs(offset, inside) if inside else ()
        except RequestError as error:
            return await channel.send(_SIMPLE.pack(SIMPLE_REPLY_MAGIC, error.errno, handle))
        await channel.send(_SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, handle), more=inside > 0)
        for run in runs:
            await channel.send_run(run)
        if inside < length:
            return None


async def _serve_modern(channel: Channel, export: Export, handshake: Handshake) -> None:
    while True:
        magic, flags, kind, handle, offset, length = _REQUEST.unpack(await channel.receive(_REQUEST.size))
        if magic != REQUEST_MAGIC or kind == _DISC:
            return
        try:
            if kind == _WRITE:
                await _discard(channel, length)
                raise RequestError(EPERM)
            if length == 0 or offset + length > export.size:
                raise RequestError(EINVAL)
            if kind == _BLOCK_STATUS and handshake.allocation:
                await _send_status(channel, export, handle, offset, length, one=bool(flags & _FLAG_REQ_ONE))
            elif kind != _READ:
                raise RequestError(EINVAL)
            elif length > _MAX_REQUEST:
                raise RequestError(EOVERFLOW)
            elif handshake.structured:
                await _send_chunks(channel, export, handle, offset, length, whole=bool(flags & _FLAG_DF))
            else:
                await _send_whole(channel, export, _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, handle), offset, length)
        except RequestError as error:
            await _send_error(channel, handshake, handle, error.errno)


async def _send_whole(channel: Channel, export: Export, head: bytes, offset: int, length: int) -> None:
    """`head` and all of a range. An error in the middle could only end the connection, so it is looked for first."""
    parts = list(split([Extent(offset, length)], STEP))
    for part in parts[1:]:
        await export.runs(*part)
    for number, part in enumerate(parts):
        try:
            runs = await export.runs(*part)
        except RequestError as error:
            if number == 0:
                raise
            raise ConnectionAbortedError(f"errno {error.errno} in the middle of a reply") from error
        if number == 0:
            await channel.send(head, more=True)
        for run in runs:
            await channel.send_run(run)


async def _send_chunks(channel: Channel, export: Export, handle: int, offset: int, length: int, *, whole: bool) -> None:
    """A read as structured replies: holes cost nothing, unless the client wants one piece."""
    if whole:
        head = _chunk(_DONE, _OFFSET_DATA, handle, 8 + length) + struct.pack(">Q", offset)
        return await _send_whole(channel, export, head, offset, length)
    for part in split([Extent(offset, length)], STEP):
        await _send_part(channel, await export.runs(*part), handle, part.offset, offset + length)
    return None


async def _send_part(channel: Channel, runs: Iterable[Run], handle: int, offset: int, end: int) -> None:
    """Chunks for a part of a read; the one that reaches `end` is the last."""
    for run in runs:
        done = _DONE if offset + run.length == end else 0
        if isinstance(run, ZeroRun):
            hole = struct.pack(">QI", offset, run.length)
            await channel.send(_chunk(done, _OFFSET_HOLE, handle, len(hole)) + hole, more=not done)
        else:
            head = _chunk(done, _OFFSET_DATA, handle, 8 + run.length) + struct.pack(">Q", offset)
            await channel.send(head, more=True)
            await channel.send_run(run)
        offset += run.length


async def _send_status(channel: Channel, export: Export, handle: int, offset: int, length: int, *, one: bool) -> None:
    extents = (await export.allocation(offset, length))[: 1 if one else _MAX_STATUS]
    body = struct.pack(">I", ALLOCATION_ID) + b"".join(
        struct.pack(">II", size, _HOLE_AND_ZERO if hole else 0) for size, hole in extents
    )
    await channel.send(_chunk(_DONE, _STATUS, handle, len(body)) + body)


async def _send_error(channel: Channel, handshake: Handshake, handle: int, errno: int) -> None:
    if handshake.structured:
        body = struct.pack(">IH", errno, 0)
        await channel.send(_chunk(_DONE, _ERROR, handle, len(body)) + body)
    else:
        await channel.send(_SIMPLE.pack(SIMPLE_REPLY_MAGIC, errno, handle))


async def _discard(channel: Channel, length: int) -> None:
    """Read over the payload of a write, so that the connection can go on."""
    if length > _MAX_REQUEST:
        raise ConnectionResetError("a write of unreasonable length")
    while length > 0:
        length -= len(await channel.receive(min(length, PIECE)))


def _chunk(flags: int, kind: int, handle: int, length: int) -> bytes:
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, handle, length)
