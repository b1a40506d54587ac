"""An index segment: ids sorted by their first eight bytes, and where their records are. Memory-mapped, never parsed.

Lookups are vectorised over a batch: a fence table names the window in which an id must be, one gather compares the
windows of the whole batch, a second one the remaining 24 bytes of those that matched.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mover.store.file_map import MappedFile
from mover.store.identity import Identity
from mover.store.names import DATA, META, PackName, SegmentName

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

HEADER_LENGTH = 64
TRAILER_LENGTH = 128
ROW_LENGTH = 40
MAX_LEVEL = 9
MAX_RECORDS = (1 << 32) - 1
_MAGIC = b"MVIDX\0\0\x01"
_END = b"MVIDXEND"
HEAD = _MAGIC + bytes(HEADER_LENGTH - len(_MAGIC))
_FIELDS = struct.Struct("<QIIIBBH")
_PACK = struct.Struct("<16sIB3xQ")
_REPLACES = struct.Struct("<16sIB3x")
_CHECKED = 88
# Large segments are hashed in pieces of this size, smaller ones are left mapped.
_PIECE = 8 << 20
# About this many ids share a window.
_WINDOW = 8
# A wider window than this is searched by bisection: ids of one store do not bunch, unless somebody makes them.
_WIDEST = 64
# In so few rows bisection takes less than looking into windows: fewer calls of numpy, which are what a lookup costs.
_BISECTED = 64 << 10
# Rows that are further from each other than this, in bytes, are read rather than looked at where they are mapped: that
# takes a fifth of what a fault takes, which maps up to 1 MiB around it (seen on Linux 6.18 with ext4).
FAR = 64 << 10

ROW = np.dtype([("rest", "<u8", 3), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("meta", "<u4")])
_NONE: I64 = np.empty(0, np.int64)
_NO_PACKS: U32 = np.empty(0, np.uint32)


class BadSegmentError(Exception):
    """These bytes are no index segment. The text says why."""


@dataclass(frozen=True)
class PackEntry:
    """A pack of a segment: its name and length in bytes."""

    name: PackName
    size: int


@dataclass(frozen=True)
class Segment:
    """`prefix` and `rows` are views of the mapped object, `file` what is mapped, if it is a file."""

    prefix: U64
    rows: npt.NDArray[np.void]
    fence: U32
    window: int
    packs: list[PackEntry]
    replaces: list[SegmentName]
    file: MappedFile | None = None

    def __len__(self) -> int:
        return len(self.prefix)

    def find(self, keys: U64) -> tuple[I64, I64, U32]:
        """Which of `keys` (ids as four little-endian u64 each) are here, in order; their rows, and their packs."""
        at, rows = self._of_prefix(keys[:, 0])
        if not len(at):
            return at, rows, _NO_PACKS
        fields = self.at(rows)
        packs = fields["pack"]
        same = (fields["rest"] == keys[at, 1:]).all(axis=1)
        if same.all():
            return at, rows, packs
        rows, packs = rows.copy(), packs.copy()
        for number in np.flatnonzero(~same).tolist():
            rows[number], packs[number] = self._among_equals(keys[at[number]], int(rows[number]))
        found = rows >= 0
        return at[found], rows[found], packs[found]

    def _of_prefix(self, prefix: U64) -> tuple[I64, I64]:
        """Which of these first eight bytes are here, and the first row of each."""
        if not len(self.prefix) or not len(prefix):
            return _NONE, _NONE
        if self.window > _WIDEST or len(self.prefix) <= _BISECTED:
            rows: I64 = self.prefix.searchsorted(prefix)
        else:
            start = self.fence.take((prefix >> self._shift).view(np.int64))[:, None]
            # Of those that are equal the first, or that at the start if none is.
            equal = self.prefix.take(start + self._window, mode="clip") == prefix[:, None]
            rows = start[:, 0] + equal.argmax(axis=1)
        (at,) = (self.prefix.take(rows, mode="clip") == prefix).nonzero()
        return at, rows[at]

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - _bits(self.fence))

    @cached_property
    def _window(self) -> I64:
        return np.arange(self.window, dtype=np.int64)

    def _among_equals(self, key: U64, first: int) -> tuple[int, int]:
        """Two ids with the same first eight bytes: look at the neighbours."""
        at = first
        while at < len(self.prefix) and self.prefix[at] == key[0]:
            if (self.rows["rest"][at] == key[1:]).all():
                return at, int(self.rows["pack"][at])
            at += 1
        return -1, 0

    def at(self, rows: I64) -> npt.NDArray[np.void]:
        """What these rows say. Those far from each other are read one by one, and none of them stays in memory."""
        if self.file is None or _close(len(self), len(rows)) or _close(int(np.ptp(rows)), len(rows)):
            return self.rows.take(rows)
        offsets = rows * ROW_LENGTH + (HEADER_LENGTH + self.prefix.nbytes)
        return np.frombuffer(self.file.read_each(offsets.tolist(), ROW_LENGTH), ROW)

    def ids(self, rows: I64) -> npt.NDArray[np.uint8]:
        """The ids in these rows, 32 bytes each."""
        return join_ids(self.prefix[rows], self.rows[rows])


def _close(reach: int, rows: int) -> bool:
    """Whether so many rows within a `reach` of so many are not far from each other."""
    return reach * ROW_LENGTH < FAR * rows or not rows


def join_ids(prefix: U64, fields: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """The ids whose first eight bytes and rows these are, 32 bytes each."""
    keys = np.empty((len(prefix), 4), "<u8")
    keys[:, 0] = prefix
    keys[:, 1:] = fields["rest"]
    return keys.view(np.uint8)


def keys_of(ids: bytes) -> U64:
    """Ids joined together, as the numbers that `Segment.find` takes."""
    return np.frombuffer(ids, "<u8").reshape(-1, 4)


def _bits(fence: U32) -> int:
    return (len(fence) - 1).bit_length() - 1


def encode(
    identity: Identity,
    keys: U64,
    rows: npt.NDArray[np.void],
    packs: Sequence[PackEntry],
    replaces: Sequence[SegmentName] = (),
    level: int = 0,
) -> list[bytes]:
    """The bytes of a segment, as buffers to be written one after the other. `rows` go with `keys`, in any order."""
    order = np.argsort(keys[:, 0], kind="stable")
    prefix = np.ascontiguousarray(keys[order, 0], "<u8")
    sorted_rows = rows[order]
    fence, window = make_fence(prefix)
    columns = [HEAD, prefix.tobytes(), sorted_rows.tobytes()]
    check = identity.checksum(*columns)
    return [*columns, encode_tables(identity, check, len(prefix), fence, window, packs, replaces, level)]


def encode_tables(
    identity: Identity,
    columns_check: bytes,
    count: int,
    fence: U32,
    window: int,
    packs: Sequence[PackEntry],
    replaces: Sequence[SegmentName],
    level: int,
) -> bytes:
    """Everything after the columns, whose checksum is `columns_check`."""
    tables = b"".join(
        [
            fence.astype("<u4").tobytes(),
            *(_PACK.pack(pack.name.wid, pack.name.seq, pack.name.kind, pack.size) for pack in packs),
            *(_REPLACES.pack(name.wid, name.number, name.level) for name in replaces),
        ]
    )
    trailer = _FIELDS.pack(count, len(packs), len(replaces), window, _bits(fence), level, 0) + bytes(32)
    trailer += columns_check
    return tables + trailer + identity.checksum(tables, trailer) + _END


def fence_bits(count: int) -> int:
    """How many bits of an id name the window it is in, with `count` ids."""
    return max((count // _WINDOW).bit_length(), 1)


def make_fence(prefix: U64) -> tuple[U32, int]:
    """Where each window of the sorted `prefix` starts, and the length of the longest."""
    bits = fence_bits(len(prefix))
    edges = (np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)).astype(np.uint64)
    fence = np.empty((1 << bits) + 1, np.uint32)
    fence[0] = 0
    fence[1:-1] = np.searchsorted(prefix, edges)
    fence[-1] = len(prefix)
    return fence, int(np.diff(fence).max(initial=0)) or 1


def parse(identity: Identity, data: memoryview) -> Segment:
    """A segment over `data`. Raises `BadSegmentError`.

    Length and tables are checked, the columns are not (`columns_intact` does): that would read the whole index at
    every start. A wrong byte in them can hide a record or point beside it, and the record itself tells; it never makes
    a chunk pass for stored that is not.
    """
    if len(data) < HEADER_LENGTH + TRAILER_LENGTH:
        raise BadSegmentError(f"it has {len(data)} bytes only")
    trailer = bytes(data[-TRAILER_LENGTH:])
    if trailer[-8:] != _END or data[:8] != _MAGIC:
        raise BadSegmentError("it does not begin and end like an index segment")
    count, packs, replaces, window, bits, _, _ = _FIELDS.unpack_from(trailer)
    if bits > 32 or count > MAX_RECORDS:
        raise BadSegmentError("its trailer is damaged")
    rows = HEADER_LENGTH + 8 * count
    fence = rows + ROW_LENGTH * count
    pack_table = fence + 4 * ((1 << bits) + 1)
    replace_table = pack_table + _PACK.size * packs
    end = replace_table + _REPLACES.size * replaces
    if end + TRAILER_LENGTH != len(data):
        raise BadSegmentError(f"it has {len(data)} bytes instead of {end + TRAILER_LENGTH}")
    if identity.checksum(data[fence:end], trailer[:_CHECKED]) != trailer[_CHECKED : _CHECKED + 32]:
        raise BadSegmentError("its tables are damaged")
    pack_entries = [
        PackEntry(PackName(wid, seq, kind), size)
        for wid, seq, kind, size in _PACK.iter_unpack(data[pack_table:replace_table])
    ]
    if bits == 0 or any(entry.name.kind not in (DATA, META) for entry in pack_entries):
        raise BadSegmentError("it holds what this version does not know")
    return Segment(
        np.frombuffer(data[HEADER_LENGTH:rows], "<u8"),
        np.frombuffer(data[rows:fence], ROW),
        np.frombuffer(data[fence:pack_table], "<u4"),
        window,
        pack_entries,
        [SegmentName(level, wid, number) for wid, number, level in _REPLACES.iter_unpack(data[replace_table:end])],
        data.obj if isinstance(data.obj, MappedFile) else None,
    )


def columns_intact(identity: Identity, data: memoryview) -> bool:
    """Whether the columns are what was written. `data` is one that `parse` took."""
    trailer = data[-TRAILER_LENGTH:]
    (count,) = struct.unpack_from("<Q", trailer)
    end = HEADER_LENGTH + (8 + ROW_LENGTH) * count
    hasher = identity.checker()
    for start in range(0, end, _PIECE):
        hasher.update(data[start : min(start + _PIECE, end)])
        release_pages(data)
    return hasher.digest() == bytes(trailer[56:_CHECKED])


def release_pages(data: memoryview, start: int = 0) -> None:
    """Let go of the mapped pages from byte `start` on. They stay in the page cache; touching them faults them in."""
    if isinstance(data.obj, mmap.mmap):
        data.obj.madvise(mmap.MADV_DONTNEED, -(-start // mmap.PAGESIZE) * mmap.PAGESIZE)
