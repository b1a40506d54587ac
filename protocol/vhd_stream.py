"""Reading a VHD as it streams by, strictly forwards, the way the servers do when they import one.

Footer copy, header and allocation table come first, then the blocks in ascending position with gaps skipped, then the
footer: where the announced length says it is, or, if none was announced, right behind whatever the tables name. Only
sectors whose bit is set in a block's bitmap count: in a dynamic disk the others are zeros, in a differencing disk they
are the parent's. Source: the specification of the format, and xen-api ocaml/libs/vhd/vhd_format/f.ml.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from protocol.errors import FormatError
from protocol.forward import Bytes, Give, Pass, Plan, Scan, Step, Take
from protocol.vhd import ABSENT, HEADER_LENGTH, SECTOR, Head, parse_batmap, parse_footer, parse_head, parse_header

# Blocks whose numbers are made into Python's at a time.
_BATCH = 4096


class Data(NamedTuple):
    """Bytes of the disk from byte `offset` on. The view is of what was fed."""

    offset: int
    view: memoryview


class End(NamedTuple):
    """The trailing footer has come, and is right. `length` is that of the whole stream in bytes."""

    length: int


Event = Head | Data | End


class VhdReader:
    """Takes a stream piece by piece and says what is in it.

    `length` is that of the stream in bytes, if it was announced. Downloads announce none: then nothing may stand
    between the last of what the head names and the footer. Memory is bounded by the head (its table has 16 MiB at
    most), a sector bitmap and the piece that is fed. `Data` may lie past the disk's size: a block is always whole.
    After a `FormatError` it is of no more use.
    """

    def __init__(self, length: int | None = None) -> None:
        self._length = length
        self._scan: Scan[Event] = Scan("VHD", self._plan)

    def feed(self, data: Bytes) -> Iterator[Event]:
        """Take the next bytes; exhaust the iterator before feeding more. Raises `FormatError`."""
        return self._scan.feed(data)

    def coming(self) -> tuple[int, int] | None:
        """Where on the disk the content lies that the next bytes are, and how many they are; None if they are none."""
        coming = self._scan.coming()
        return (coming[0].offset, coming[1]) if coming and isinstance(coming[0], Data) else None

    def finish(self) -> None:
        """Say that the stream is over. Raises `FormatError` if it was cut short."""
        self._scan.finish()

    def _plan(self, scan: Scan[Event]) -> Plan[Event]:
        head = yield from _head(self._length)
        yield Give(head)
        blocks = _Blocks(head)
        if self._length is None:
            end, footer = yield from _computed_end(head, blocks)
        else:
            end, footer = (self._length - 1) & ~(SECTOR - 1), b""
        blocks.check(head.header.bat_offset + head.header.bat_length, end)
        size = head.header.block_size
        for start, block in blocks:
            yield Pass(start - scan.position)
            bitmap = yield Take(head.header.bitmap_length)
            for first, last, present in _runs(bitmap, size // SECTOR):
                make = partial(_data, block * size + first * SECTOR) if present else None
                yield Pass((last - first) * SECTOR, make)
        if scan.position <= end:
            yield Pass(end - scan.position)
            footer = yield Take(SECTOR if self._length is None else self._length - end)
        parse_footer(footer.ljust(SECTOR, b"\0"), end)  # old writers leave the last byte out
        yield Give(End(scan.position))


def _data(offset: int, start: int, view: memoryview) -> Event:
    return Data(offset + start, view)


def _head(length: int | None) -> Generator[Step[Event], bytes, Head]:
    data = yield Take(SECTOR)
    footer = parse_footer(data)
    parse_head(data)  # looks at where the header is said to be
    data += yield Take(footer.header_offset + HEADER_LENGTH - len(data))
    header = parse_header(data[footer.header_offset :], footer.header_offset, footer.size)
    parse_head(data)
    end = header.bat_offset + header.bat_length
    if length is not None and end + SECTOR > length:
        raise FormatError("VHD", f"no room for its allocation table in {length} bytes", header.bat_offset)
    data += yield Take(end - len(data))
    head = parse_head(data)
    assert head is not None
    return head


def _computed_end(head: Head, blocks: _Blocks) -> Generator[Step[Event], bytes, tuple[int, bytes]]:
    """Where the footer has to be: behind the table, the blocks, the parent's names and the batmap, whose place only the
    bytes behind the table tell. Returns those as well if they had to be looked at.
    """
    table = head.header.bat_offset + head.header.bat_length
    ends = [table, blocks.end, *(locator.offset + locator.length for locator in head.header.locators)]
    peeked = b""
    if blocks.start > table:
        peeked = yield Take(SECTOR)
        batmap = parse_batmap(peeked, table)
        ends += [batmap.end] if batmap else []
    return -(-max(ends) // SECTOR) * SECTOR, peeked


class _Blocks:
    """The blocks that are present, in the order they come in."""

    def __init__(self, head: Head) -> None:
        table = np.frombuffer(head.bat, dtype=np.uint32)
        numbers = np.flatnonzero(table != ABSENT).astype(np.uint32)
        order = np.argsort(table[numbers], kind="stable")
        self._numbers = numbers[order]
        self._sectors = table[self._numbers]
        self._stride = (head.header.bitmap_length + head.header.block_size) // SECTOR

    @property
    def start(self) -> int:
        """The first byte of the first block; farther than any file if there is none."""
        return int(self._sectors[0]) * SECTOR if len(self._sectors) else 1 << 63

    @property
    def end(self) -> int:
        """The first byte behind the last block; 0 if there is none."""
        return (int(self._sectors[-1]) + self._stride) * SECTOR if len(self._sectors) else 0

    def check(self, start: int, end: int) -> None:
        """Raise `FormatError` if any lies before byte `start`, past `end`, or in another."""
        if self.start < start:
            raise FormatError("VHD", f"block {self._numbers[0]} lies within the head", self.start)
        if self.end > end:
            raise FormatError("VHD", f"block {self._numbers[-1]} lies past the end", self.end)
        close = np.flatnonzero(np.diff(self._sectors) < self._stride)
        if len(close):
            first = int(close[0]) + 1
            raise FormatError(
                "VHD", f"block {self._numbers[first]} overlaps another", int(self._sectors[first]) * SECTOR
            )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each as its first byte in the stream and its number."""
        for at in range(0, len(self._numbers), _BATCH):
            sectors, numbers = self._sectors[at : at + _BATCH].tolist(), self._numbers[at : at + _BATCH].tolist()
            for sector, number in zip(sectors, numbers, strict=True):
                yield sector * SECTOR, number


def _runs(bitmap: bytes, sectors: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of equal bits: first sector, the one after the last, the bit."""
    if bitmap.count(0xFF) == len(bitmap):
        yield 0, sectors, True
        return
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), count=sectors)
    edges = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), sectors]
    for first, last in pairwise(edges):
        yield first, last, bool(bits[first])
