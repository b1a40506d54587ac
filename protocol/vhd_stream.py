"""Reading a VHD as it streams by, strictly forwards, the way the servers do when they import one.

Footer copy, header and allocation table come first, then the blocks in ascending position with gaps skipped, then the
footer where the announced length says it is. Only sectors whose bit is set in a block's bitmap count: in a dynamic
disk the others are zeros, in a differencing disk they are the parent's. Source: the specification of the format, and
xen-api ocaml/libs/vhd/vhd_format/f.ml.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from protocol.errors import FormatError
from protocol.vhd import ABSENT, HEADER_LENGTH, SECTOR, Head, parse_footer, parse_head, parse_header


class Data(NamedTuple):
    """Bytes of the disk from byte `offset` on. The view is of what was fed."""

    offset: int
    view: memoryview


class End(NamedTuple):
    """The trailing footer has come, and is right. `length` is that of the whole stream in bytes."""

    length: int


Event = Head | Data | End


class _Gather(NamedTuple):
    """The next `length` bytes are wanted in one piece."""

    length: int


class _Pass(NamedTuple):
    """The next `length` bytes are of the disk at `offset`, or of no interest."""

    length: int
    offset: int | None


_Step = _Gather | _Pass | Head | End


class VhdReader:
    """Takes a stream of `length` bytes piece by piece and says what is in it.

    Memory is bounded by the head, one sector bitmap and the piece that is fed. `Data` may lie past the disk's size: a
    block is always whole. After a `FormatError` it is of no more use.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._position = 0
        self._gathered = bytearray()
        self._plan = self._steps()
        self._step: _Step | None = next(self._plan)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Take the next bytes; exhaust the iterator before feeding more. Raises `FormatError`."""
        view = memoryview(data).cast("B")
        while True:
            match self._step:
                case Head() | End() as event:
                    yield event
                    self._advance(b"")
                case _Gather(length):
                    part = view[: length - len(self._gathered)]
                    self._gathered += part
                    view = self._consume(view, len(part))
                    if len(self._gathered) < length:
                        return
                    whole, self._gathered = bytes(self._gathered), bytearray()
                    self._advance(whole)
                case _Pass(length, offset):
                    part = view[:length]
                    if offset is not None and part:
                        yield Data(offset, part)
                        offset += len(part)
                    view = self._consume(view, len(part))
                    if len(part) < length:
                        self._step = _Pass(length - len(part), offset)
                        return
                    self._advance(b"")
                case None:
                    if view:
                        raise FormatError("VHD", "something follows the footer", self._position)
                    return

    def finish(self) -> None:
        """Say that the stream is over. Raises `FormatError` if it was cut short."""
        if self._step is not None:
            raise FormatError("VHD", f"the stream ends early, {self._length} bytes were announced", self._position)

    def _consume(self, view: memoryview, length: int) -> memoryview:
        self._position += length
        return view[length:]

    def _advance(self, answer: bytes) -> None:
        try:
            self._step = self._plan.send(answer)
        except StopIteration:
            self._step = None

    def _steps(self) -> Generator[_Step, bytes, None]:
        """What to do with the stream, step by step; the bytes asked for come back as the value of `yield`."""
        head = yield from self._head()
        yield head
        end = (self._length - 1) & ~(SECTOR - 1)
        position = head.header.bat_offset + head.header.bat_length
        size = head.header.block_size
        for start, block in _placed(head, position, end):
            yield _Pass(start - position, None)
            bitmap = yield _Gather(head.header.bitmap_length)
            for first, last, present in _runs(bitmap, size // SECTOR):
                yield _Pass((last - first) * SECTOR, block * size + first * SECTOR if present else None)
            position = start + len(bitmap) + size
        yield _Pass(end - position, None)
        footer = yield _Gather(self._length - end)
        parse_footer(footer.ljust(SECTOR, b"\0"), end)  # old writers leave the last byte out
        yield End(self._length)

    def _head(self) -> Generator[_Step, bytes, Head]:
        data = yield _Gather(SECTOR)
        footer = parse_footer(data)
        parse_head(data)  # looks at where the header is said to be
        data += yield _Gather(footer.header_offset + HEADER_LENGTH - len(data))
        header = parse_header(data[footer.header_offset :], footer.header_offset, footer.size)
        parse_head(data)
        end = header.bat_offset + header.bat_length
        if end + SECTOR > self._length:
            raise FormatError("VHD", f"no room for its allocation table in {self._length} bytes", header.bat_offset)
        data += yield _Gather(end - len(data))
        head = parse_head(data)
        assert head is not None
        return head


def _placed(head: Head, position: int, end: int) -> Iterator[tuple[int, int]]:
    """The blocks that are present, as (byte in the stream, number), in the order they come in.

    Raises `FormatError` if any lies before `position`, past `end`, or in another.
    """
    table = np.frombuffer(head.bat, dtype=np.uint32)
    blocks = np.flatnonzero(table != ABSENT)
    starts = table[blocks].astype(np.int64) * SECTOR
    order = np.argsort(starts, kind="stable")
    blocks, starts = blocks[order], starts[order]
    stride = head.header.bitmap_length + head.header.block_size
    if not len(starts):
        return
    if starts[0] < position:
        raise FormatError("VHD", f"block {blocks[0]} lies within the head", int(starts[0]))
    if starts[-1] + stride > end:
        raise FormatError("VHD", f"block {blocks[-1]} lies past the end", int(starts[-1]))
    close = np.flatnonzero(np.diff(starts) < stride)
    if len(close):
        raise FormatError("VHD", f"block {blocks[close[0] + 1]} overlaps another", int(starts[close[0] + 1]))
    yield from zip(starts.tolist(), blocks.tolist(), strict=True)


def _runs(bitmap: bytes, sectors: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of equal bits: first sector, the one after the last, the bit."""
    if bitmap.count(0xFF) == len(bitmap):
        yield 0, sectors, True
        return
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), count=sectors)
    edges = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), sectors]
    for first, last in pairwise(edges):
        yield first, last, bool(bits[first])
