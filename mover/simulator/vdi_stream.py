"""Disk contents in and out as HTTP bodies: raw, VHD, VHD of the differences, and the servers' own framing.

Source: xen-api ocaml/libs/vhd/vhd_format/f.ml, ocaml/vhd-tool/src/impl.ml and chunked.ml,
ocaml/xapi/vhd_tool_wrapper.ml.
"""

from __future__ import annotations

import asyncio
import struct
import uuid as uuids
from collections.abc import Iterable, Sequence
from typing import Protocol

from mover.simulator.storage import Disks, StorageError
from protocol.errors import FormatError
from protocol.extent import Extent, align, merge
from protocol.vhd import BLOCK_SIZE, MAX_SIZE, SECTOR, VhdWriter
from protocol.vhd_stream import Data, VhdReader

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_FRAME = struct.Struct("<QI")
_LOCATOR = slice(1536, 2048)


class StreamError(Exception):
    """A transfer that cannot go on. `code` is XAPI's: VDI_TOO_LARGE before the first byte, VDI_IO_ERROR later."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Send(Protocol):
    """Where a body goes. Both calls wait until the other side has taken enough."""

    async def write(self, data: bytes, /) -> None: ...

    async def sendfile(self, fd: int, offset: int, length: int, /) -> None: ...


class Reader(Protocol):
    """Where a body comes from, as asyncio.StreamReader; `read` gives b"" at the end."""

    async def read(self, n: int, /) -> bytes: ...

    async def readexactly(self, n: int, /) -> bytes: ...


async def export_raw(disks: Disks, uuid: str, send: Send) -> None:
    """Send every byte of the disk; what is nowhere is sent as zeros. Raises StorageError."""
    await _send_range(disks, uuid, Extent(0, disks.size(uuid)), send)


async def export_vhd(disks: Disks, uuid: str, base_uuid: str | None, send: Send, *, creator: bytes = b"caml") -> None:
    """Send the disk as a dynamic VHD, or what may differ from `base_uuid` as a differencing one.

    A block of 2 MiB is in it if any file of the chain holds a part of it; with a base, any file that is only in one of
    the two chains, whatever the content. The data are always the disk's own. Raises StorageError, StreamError.
    """
    size = disks.size(uuid)
    if size > MAX_SIZE:
        raise StreamError("VDI_TOO_LARGE", f"{size} bytes do not fit into a VHD")
    with disks.pinned():
        blocks = _blocks(disks, uuid, base_uuid)
        # The id of the base is that of its file in the repository, not of anything exported before.
        parent = None if base_uuid is None else (_file_id(base_uuid), f"/run/sr-mount/simulated/{base_uuid}.vhd")
        writer = VhdWriter(size, [block.offset // BLOCK_SIZE for block in blocks], creator=creator, parent=parent)
        head = bytearray(writer.head())
        head[_LOCATOR] = bytes(SECTOR)  # the server leaves the place of the locator's text empty
        await send.write(bytes(head))
        prefix = writer.block_prefix()
        for block in blocks:
            await send.write(prefix)
            await _send_range(disks, uuid, Extent(block.offset, min(BLOCK_SIZE, size - block.offset)), send)
            await _send_zeros(max(0, block.end - size), send)
        await send.write(writer.trailer())


async def import_raw(disks: Disks, uuid: str, reader: Reader, length: int) -> None:
    """Write exactly `length` bytes from the start of the disk on. Raises StorageError, StreamError."""
    offset = 0
    while offset < length:
        data = await reader.read(min(_PIECE, length - offset))
        if not data:
            raise StreamError("VDI_IO_ERROR", f"the body ends after {offset} of {length} bytes")
        _write(disks, uuid, offset, data)
        offset += len(data)


async def import_vhd(disks: Disks, uuid: str, reader: Reader, length: int) -> None:
    """Write the sectors a VHD of `length` bytes holds. Its size, type and parent are not looked at.

    Nothing else is touched, so a differencing VHD brings a disk with its parent's content up to date, and a full one
    needs a fresh disk. Raises StorageError, StreamError.
    """
    try:
        parser = VhdReader(length)
        left = length
        while left:
            data = await reader.read(min(_PIECE, left))
            if not data:
                break
            left -= len(data)
            for event in parser.feed(data):
                if isinstance(event, Data):
                    _write(disks, uuid, event.offset, event.view)
        parser.finish()
    except FormatError as error:
        raise StreamError("VDI_IO_ERROR", str(error)) from None


async def import_chunked(disks: Disks, uuid: str, reader: Reader) -> None:
    """Write frames, each an offset and a length and the bytes, until an empty one at 0. Raises StorageError,
    StreamError.
    """
    try:
        while (frame := _FRAME.unpack(await reader.readexactly(_FRAME.size))) != (0, 0):
            offset, length = frame
            end = offset + length
            if end > disks.size(uuid):
                raise StreamError("VDI_IO_ERROR", f"a frame ends at {end}, past the disk")
            while offset < end:
                data = await reader.readexactly(min(_PIECE, end - offset))
                _write(disks, uuid, offset, data)
                offset += len(data)
    except asyncio.IncompleteReadError:
        raise StreamError("VDI_IO_ERROR", "the body ends within a frame") from None


def _blocks(disks: Disks, uuid: str, base_uuid: str | None) -> list[Extent]:
    """The whole blocks of 2 MiB that an export holds, each by itself."""
    size = -(-disks.size(uuid) // BLOCK_SIZE) * BLOCK_SIZE
    mine = dict(disks.files(uuid))
    if base_uuid is None:
        files: Iterable[Sequence[Extent]] = mine.values()
    else:
        theirs = dict(disks.files(base_uuid))
        names = mine.keys() ^ theirs.keys()
        files = [(mine | theirs)[name] for name in names]
    allocated = align(merge(extent for extents in files for extent in extents), BLOCK_SIZE, size)
    return [
        Extent(offset, BLOCK_SIZE) for extent in allocated for offset in range(extent.offset, extent.end, BLOCK_SIZE)
    ]


async def _send_range(disks: Disks, uuid: str, extent: Extent, send: Send) -> None:
    with disks.pinned():
        for run in disks.runs(uuid, extent.offset, extent.length):
            if run.fd is None:
                await _send_zeros(run.length, send)
            else:
                await send.sendfile(run.fd, run.file_offset, run.length)


async def _send_zeros(length: int, send: Send) -> None:
    while length > 0:
        await send.write(_ZEROS if length >= _PIECE else bytes(length))
        length -= min(length, _PIECE)


def _write(disks: Disks, uuid: str, offset: int, data: bytes | memoryview) -> None:
    try:
        disks.write(uuid, offset, data)
    except StorageError as error:
        if error.code == 200:
            raise StreamError("VDI_IO_ERROR", error.message) from None
        raise


def _file_id(uuid: str) -> uuids.UUID:
    """A version 4 UUID that is always the same for a disk, and not its own."""
    return uuids.UUID(bytes=uuids.uuid5(uuids.NAMESPACE_OID, uuid).bytes, version=4)
