"""The VHD format, sans-I/O: footer, dynamic header, block allocation table, and a writer that knows its length.

Big-endian throughout. Source: Microsoft's "Virtual Hard Disk Image Format Specification" 1.0, and what xapi's own
streams look like (xen-api ocaml/libs/vhd/vhd_format/f.ml): footer copy, header, one sector for a parent locator, BAT
at 2048, then for each block that is present a bitmap of one sector and 2 MiB of data, in order, and the footer again.
"""

from __future__ import annotations

import struct
import sys
import uuid as uuids
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple, NoReturn

import numpy as np

from protocol.errors import FormatError
from protocol.extent import Extent, clip
from protocol.forward import Bytes, refuse_response

SECTOR = 512
BLOCK_SIZE = 2 << 20
# The server refuses more (VDI_TOO_LARGE); the format's sector numbers end at 2 TiB.
MAX_SIZE = 2040 << 30
ABSENT = 0xFFFFFFFF
HEADER_LENGTH = 1024

DYNAMIC = 3
DIFFERENCING = 4

_BAT_OFFSET = 2048
_HEADER_OFFSET = 512
# Sector numbers of 32 bits end here, so no table needs to reach farther.
_MAX_REACH = 2 << 40
# Enough for 2 TiB in blocks of 512 KiB. A table of as many takes 16 MiB.
_MAX_ENTRIES = 1 << 22
_FOOTER = struct.Struct(">8sIIQI4sI4sQQIII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sII512s192s256x")
_LOCATOR = struct.Struct(">4sIIIQ")
_BATMAP = struct.Struct(">8sQIII")


@dataclass(frozen=True)
class Footer:
    """The fields of a footer that anybody needs; `size` is current_size in bytes, `kind` DYNAMIC or DIFFERENCING."""

    size: int
    kind: int
    header_offset: int
    creator: bytes
    unique_id: uuids.UUID


class Locator(NamedTuple):
    """Where a name of the parent stands: `length` bytes from `offset` on in the way of `platform` (`MacX`)."""

    platform: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class Header:
    """The fields of a dynamic disk header that anybody needs. Lengths in bytes."""

    bat_offset: int
    entries: int
    block_size: int
    parent: uuids.UUID
    parent_name: str
    locators: tuple[Locator, ...]

    @property
    def bitmap_length(self) -> int:
        """Bytes of the sector bitmap in front of each block, padded to a sector."""
        return _padded(self.block_size // SECTOR // 8)

    @property
    def bat_length(self) -> int:
        """Bytes of the allocation table, padded to a sector."""
        return _padded(4 * self.entries)


@dataclass(frozen=True)
class Head:
    """Everything in front of the blocks. `bat` holds for each block its first sector in the file, or ABSENT."""

    footer: Footer
    header: Header
    bat: array[int]

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.footer.size

    def allocated(self) -> list[Extent]:
        """The blocks that are present, merged, cut at the disk's size."""
        unit = self.header.block_size
        present = np.frombuffer(self.bat, dtype=np.uint32) != ABSENT
        edges = np.flatnonzero(np.diff(present, prepend=False, append=False)) * unit
        pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        return clip((Extent(start, end - start) for start, end in pairs), self.size)


def parse_footer(data: Bytes, offset: int = 0) -> Footer:
    """Parse 512 bytes. `offset` is where they stand, for errors. Raises `FormatError`."""
    if len(data) < SECTOR:
        _fail("the footer is cut off", offset)
    fields = _FOOTER.unpack_from(data)
    cookie, _, version, header_offset, _, creator, _, _, _, size, _, kind, checksum, unique_id, _ = fields
    if cookie != b"conectix":
        refuse_response("VHD", data, offset)
        _fail("no footer where one should be", offset)
    if checksum != _checksum(data[:SECTOR], 64):
        _fail("the footer's checksum does not match", offset)
    if version >> 16 != 1:
        _fail(f"file format version {version >> 16}", offset)
    if kind not in (DYNAMIC, DIFFERENCING):
        _fail(f"disk type {kind} is neither dynamic nor differencing", offset)
    if not 0 < size <= 1 << 41:
        _fail(f"a disk of {size} bytes", offset)
    return Footer(size, kind, header_offset, creator, uuids.UUID(bytes=unique_id))


def parse_header(data: Bytes, offset: int, size: int) -> Header:
    """Parse 1024 bytes of a disk of `size` bytes. Raises `FormatError`."""
    if len(data) < HEADER_LENGTH:
        _fail("the header is cut off", offset)
    fields = _HEADER.unpack_from(data)
    cookie, _, bat_offset, version, entries, block_size, checksum, parent, _, _, name, locators = fields
    if cookie != b"cxsparse":
        _fail("no dynamic disk header where one should be", offset)
    if checksum != _checksum(data[:HEADER_LENGTH], 36):
        _fail("the header's checksum does not match", offset)
    if version >> 16 != 1:
        _fail(f"header version {version >> 16}", offset)
    if block_size < SECTOR * 8 or block_size > 256 << 20 or block_size & (block_size - 1):
        _fail(f"blocks of {block_size} bytes", offset)
    if entries > min(_MAX_ENTRIES, -(-_MAX_REACH // block_size)) or entries * block_size < size:
        _fail(f"{entries} blocks of {block_size} bytes for a disk of {size}", offset)
    parent_name = name.decode("utf-16-be", errors="replace").rstrip("\0")
    found = (Locator(code, at, length) for code, _, length, _, at in _LOCATOR.iter_unpack(locators) if any(code))
    return Header(bat_offset, entries, block_size, uuids.UUID(bytes=parent), parent_name, tuple(found))


def parse_head(data: bytes | bytearray) -> Head | None:
    """Parse the beginning of a VHD stream; None if more of it is needed. Raises `FormatError`."""
    if len(data) < SECTOR:
        return None
    footer = parse_footer(data)
    if not SECTOR <= footer.header_offset <= 1 << 20:
        _fail(f"the header is said to be at byte {footer.header_offset}", 0)
    if len(data) < footer.header_offset + HEADER_LENGTH:
        return None
    header = parse_header(memoryview(data)[footer.header_offset :], footer.header_offset, footer.size)
    if not footer.header_offset + HEADER_LENGTH <= header.bat_offset <= 1 << 20 or header.bat_offset % SECTOR:
        _fail(f"the allocation table is said to be at byte {header.bat_offset}", footer.header_offset)
    if len(data) < header.bat_offset + header.bat_length:
        return None
    bat = array("I")
    bat.frombytes(memoryview(data)[header.bat_offset : header.bat_offset + 4 * header.entries])
    if sys.byteorder == "little":
        bat.byteswap()
    return Head(footer, header, bat)


def parse_batmap(data: bytes, offset: int) -> Extent | None:
    """Where a batmap's bits stand, if 512 bytes from `offset` on begin one: it says which blocks are full, and readers
    need not care. It stands right after the table. Source: blktap include/libvhd.h.
    """
    cookie, start, sectors, _, _ = _BATMAP.unpack_from(data)
    if cookie != b"tdbatmap":
        return None
    if not offset < start <= _MAX_REACH or sectors > _MAX_ENTRIES:
        _fail(f"a batmap of {sectors} sectors at byte {start}", offset)
    return Extent(start, sectors * SECTOR)


def stream_length(size: int, blocks: int) -> int:
    """Bytes of the stream of a disk of `size` bytes with `blocks` blocks present."""
    return _BAT_OFFSET + _padded(4 * -(-size // BLOCK_SIZE)) + blocks * (SECTOR + BLOCK_SIZE) + SECTOR


class VhdWriter:
    """The parts of a stream around the data: `head`, then for each of `blocks` (ascending numbers of 2 MiB blocks)
    `block_prefix` and 2 MiB, then `trailer`.

    `creator` is four bytes. Programs other than the pool trust the size only of creators they know: `tap\\0` is one.
    `parent` (unique id, name) makes a differencing disk; its blocks are whole, because readers in the field ignore
    the sector bitmaps of chains.
    """

    def __init__(
        self,
        size: int,
        blocks: Sequence[int],
        *,
        creator: bytes = b"tap\0",
        parent: tuple[uuids.UUID, str] | None = None,
        unique_id: uuids.UUID | None = None,
    ) -> None:
        entries = -(-size // BLOCK_SIZE)
        if not 0 < size <= MAX_SIZE or len(creator) != 4:
            raise ValueError(f"a VHD has 1 to {MAX_SIZE} bytes and a creator of four bytes, not {size}, {creator!r}")
        if any(left >= right for left, right in pairwise(chain([-1], blocks, [entries]))):
            raise ValueError("blocks are to be ascending, and within the disk")
        self._size = size
        self._blocks = blocks
        self._entries = entries
        self._parent = parent
        self._footer = _build_footer(size, DIFFERENCING if parent else DYNAMIC, creator, unique_id or uuids.uuid4())

    def head(self) -> bytes:
        """Footer copy, header, the locator's sector, allocation table."""
        bat = array("I", [ABSENT]) * (_padded(4 * self._entries) // 4)
        sector = (_BAT_OFFSET + 4 * len(bat)) // SECTOR
        for block in self._blocks:
            bat[block] = sector
            sector += (SECTOR + BLOCK_SIZE) // SECTOR
        if sys.byteorder == "little":
            bat.byteswap()
        return self._footer + _build_header(self._entries, self._parent) + bat.tobytes()

    def block_prefix(self) -> bytes:
        """The sector bitmap of a block: every sector counts."""
        return b"\xff" * SECTOR

    def trailer(self) -> bytes:
        """What ends the stream."""
        return self._footer


def _build_footer(size: int, kind: int, creator: bytes, unique_id: uuids.UUID) -> bytes:
    def pack(checksum: int) -> bytes:
        return _FOOTER.pack(
            b"conectix", 2, 0x10000, _HEADER_OFFSET, 0, creator, 1, b"\0" * 4, size, size, _geometry(size), kind,
            checksum, unique_id.bytes, 0,
        )  # fmt: skip

    return pack(_checksum(pack(0), 64))


def _build_header(entries: int, parent: tuple[uuids.UUID, str] | None) -> bytes:
    parent_id, name = parent or (uuids.UUID(int=0), "")
    encoded = name.encode("utf-16-be")
    location = f"file://{name}".encode()
    locator = _LOCATOR.pack(b"MacX", SECTOR, len(location), 0, _HEADER_OFFSET + HEADER_LENGTH)
    if len(encoded) > 512 or len(location) > SECTOR:
        raise ValueError("a parent's name has at most 256 characters, and 505 bytes in UTF-8")

    def pack(checksum: int) -> bytes:
        return _HEADER.pack(
            b"cxsparse", 0xFFFFFFFFFFFFFFFF, _BAT_OFFSET, 0x10000, entries, BLOCK_SIZE, checksum, parent_id.bytes,
            0, 0, encoded, locator if parent else b"",
        )  # fmt: skip

    sector = location.ljust(SECTOR, b"\0") if parent else bytes(SECTOR)
    return pack(_checksum(pack(0), 36)) + sector


def _geometry(size: int) -> int:
    """Cylinders, heads and sectors per track as the specification's appendix computes them, packed in 32 bits."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        cylinders = sectors // per_track // heads
        return cylinders << 16 | heads << 8 | per_track
    per_track = 17
    heads = max(4, -(-(sectors // per_track) // 1024))
    if sectors // per_track >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
    if sectors // per_track >= heads * 1024:
        per_track, heads = 63, 16
    return (sectors // per_track // heads) << 16 | heads << 8 | per_track


def _checksum(data: Bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the four of the checksum itself at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _padded(length: int) -> int:
    return -(-length // SECTOR) * SECTOR


def _fail(reason: str, offset: int) -> NoReturn:
    raise FormatError("VHD", reason, offset)
