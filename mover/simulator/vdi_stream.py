"""What the HTTP handlers send and take for one disk: raw, VHD, and xapi's own framing of raw pieces.

The streams are those of vhd-tool: blocks of 2 MiB in ascending order, every sector bitmap full, absent where nothing
in the chain is allocated; with a base, the blocks that only one of the two chains has a node for.
"""

from __future__ import annotations

import asyncio
import struct
import uuid as uuids
from typing import Protocol

from mover.simulator.storage import Disks
from protocol.errors import FormatError
from protocol.extent import Extent, align
from protocol.vhd import BLOCK_SIZE, MAX_SIZE, VhdWriter, stream_length
from protocol.vhd_reader import VhdReader

_PIECE = 1 << 20
_FRAME = struct.Struct("<QI")
# vhd-tool copies frames in pieces; nobody sends larger ones.
_MAX_FRAME = 64 << 20


class Send(Protocol):
    """Where a stream goes."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        ...

    async def sendfile(self, descriptor: int, offset: int, length: int) -> None:
        """Send a part of a file."""
        ...


class Reader(Protocol):
    """Where a stream comes from: `asyncio.StreamReader` is one."""

    async def read(self, n: int) -> bytes:
        """At most n bytes; none at the end."""
        ...

    async def readexactly(self, n: int) -> bytes:
        """Exactly n bytes, or `asyncio.IncompleteReadError`."""
        ...


class TooLargeError(Exception):
    """The disk is larger than a VHD may be (VDI_TOO_LARGE)."""


class StreamError(Exception):
    """What was sent is not what the format says, or does not fit the disk (VDI_IO_ERROR)."""


async def export_raw(disks: Disks, uuid: str, send: Send) -> None:
    """Send every byte of the disk."""
    await _send_runs(disks, uuid, Extent(0, disks.size(uuid)), send)


async def export_vhd(disks: Disks, uuid: str, base: str | None, send: Send) -> None:
    """Send the disk as VHD; with `base`, only blocks in which the two chains differ. Raises `TooLargeError`."""
    size = disks.size(uuid)
    if size > MAX_SIZE:
        raise TooLargeError
    blocks = _blocks(_allocated(disks, uuid) if base is None else _differing(disks, uuid, base), size)
    # vhd-tool names the parent by the VHD's own id in the SR, which no export ever had.
    parent = None if base is None else (_id_in_sr(base), f"/var/run/sr-mount/sr/{base}.vhd")
    writer = VhdWriter(size, blocks, creator=b"caml", parent=parent)
    await send.write(writer.head())
    for block in blocks:
        extent = Extent(block * BLOCK_SIZE, min(BLOCK_SIZE, size - block * BLOCK_SIZE))
        await send.write(writer.block_prefix())
        await _send_runs(disks, uuid, extent, send)
        if extent.length < BLOCK_SIZE:
            await send.write(bytes(BLOCK_SIZE - extent.length))
    await send.write(writer.trailer())


def vhd_length(disks: Disks, uuid: str) -> int:
    """Bytes of the disk's VHD stream."""
    size = disks.size(uuid)
    return stream_length(size, len(_blocks(_allocated(disks, uuid), size)))


def _allocated(disks: Disks, uuid: str) -> list[Extent]:
    return [extent for _, extents in disks.files(uuid) for extent in extents]


def _differing(disks: Disks, uuid: str, base: str) -> list[Extent]:
    """What is in files of one chain that are not files of the other; coalescing can only make it more."""
    mine, theirs = dict(disks.files(uuid)), dict(disks.files(base))
    return [extent for name in mine.keys() ^ theirs.keys() for extent in {**mine, **theirs}[name]]


def _blocks(extents: list[Extent], size: int) -> list[int]:
    aligned = align(extents, BLOCK_SIZE, size)
    return [n for extent in aligned for n in range(extent.offset // BLOCK_SIZE, -(-extent.end // BLOCK_SIZE))]


async def import_raw(disks: Disks, uuid: str, reader: Reader, length: int) -> None:
    """Write exactly `length` bytes from the disk's beginning. Raises `StreamError`."""
    if length > disks.size(uuid):
        raise StreamError("more bytes than the disk has")
    offset = 0
    while offset < length:
        piece = await reader.read(min(_PIECE, length - offset))
        if not piece:
            raise StreamError(f"the stream ended after {offset} of {length} bytes")
        disks.write(uuid, offset, piece)
        offset += len(piece)


async def import_vhd(disks: Disks, uuid: str, reader: Reader, length: int) -> None:
    """Write the blocks of a VHD stream of exactly `length` bytes; its size and parent are ignored, nothing is zeroed.

    Raises `StreamError`, late where a block lies outside of the disk.
    """
    parser = VhdReader()
    left = length
    size = disks.size(uuid)
    try:
        while left:
            piece = await reader.read(min(_PIECE, left))
            if not piece:
                raise StreamError(f"the stream ended {left} bytes early")
            left -= len(piece)
            for data in parser.feed(piece):
                # The last block of a disk that is no multiple of 2 MiB is whole in the stream: the rest is padding.
                view = data.view[: max(0, size - data.offset)]
                if len(view) < len(data.view) and any(data.view[len(view) :]):
                    raise StreamError(f"a block reaches byte {data.offset + len(data.view)} of a disk of {size}")
                disks.write(uuid, data.offset, view)
        parser.finish()
    except FormatError as error:
        raise StreamError(str(error)) from error


async def import_chunked(disks: Disks, uuid: str, reader: Reader) -> None:
    """Write framed pieces: offset (u64) and length (u32), little-endian, and the bytes; zeros end it."""
    try:
        while True:
            offset, length = _FRAME.unpack(await reader.readexactly(_FRAME.size))
            if offset == length == 0:
                return
            if length > _MAX_FRAME or offset + length > disks.size(uuid):
                raise StreamError(f"a frame of {length} bytes at {offset}")
            disks.write(uuid, offset, await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise StreamError("the stream ended within a frame") from error


async def _send_runs(disks: Disks, uuid: str, extent: Extent, send: Send) -> None:
    with disks.pinned():
        for run in list(disks.runs(uuid, extent.offset, extent.length)):
            if run.fd is None:
                for done in range(0, run.length, _PIECE):
                    await send.write(_ZEROS[: min(_PIECE, run.length - done)])
            else:
                await send.sendfile(run.fd, run.file_offset, run.length)


def _id_in_sr(uuid: str) -> uuids.UUID:
    return uuids.uuid5(uuids.NAMESPACE_URL, f"vhd:{uuid}")


_ZEROS = memoryview(bytes(_PIECE))
