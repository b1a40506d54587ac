"""Reading a VHD stream forward only, as it arrives, sans-I/O.

The rules are those of xapi's own importer (xen-api ocaml/libs/vhd/vhd_format/f.ml): footer copy first, header before
table before blocks, blocks in the order in which they stand in the stream, each visited once, the footer again at the
end. Sector bitmaps are honoured: only sectors whose bit is set are data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.errors import FormatError
from protocol.vhd import ABSENT, SECTOR, Head, parse_footer, parse_head

# Footer, header and the largest table that `parse_head` takes, with the gaps it allows.
_MAX_HEAD = (1 << 20) + (1 << 27) + (1 << 20)


class Data(NamedTuple):
    """Bytes of the disk from `offset` on."""

    offset: int
    view: memoryview


class VhdReader:
    """Feed it the stream in pieces of any size; it gives the disk's data as it goes.

    `head` is there once the table has been read. Between blocks it holds less than one sector bitmap and one sector.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self._rest = b""
        self._position = 0  # in the stream, of the first byte of _rest
        self._blocks: list[tuple[int, int]] = []  # (byte in the stream, block number), the next one last
        self._block: int | None = None
        self._bitmap = b""
        self._left = 0  # bytes of the current block still to come
        self._footer_seen = False

    def feed(self, piece: bytes | bytearray | memoryview) -> Iterator[Data]:
        """Take the next bytes. Raises `FormatError`. Consume it before the next call."""
        data = b"".join((self._rest, piece))
        if self.head is None:
            end = self._read_head(data)
            if end is None:
                self._rest = data
                return
            self._position, data = end, data[end:]
        view = memoryview(data)
        used = 0
        while True:
            step, runs = self._step(view[used:])
            if step == 0:
                break
            used += step
            self._position += step
            yield from runs
        self._rest = bytes(view[used:])

    def finish(self) -> None:
        """The stream has ended. Raises `FormatError` if it ended too early, or has something behind its end."""
        if self.head is None:
            raise FormatError("VHD", "the stream ends within the head", self._position + len(self._rest))
        if self._block is not None or self._blocks:
            raise FormatError("VHD", "the stream ends before its last block", self._position + len(self._rest))
        if len(self._rest) != SECTOR:
            reason = "the footer at the end is cut off" if len(self._rest) < SECTOR else "bytes behind the end"
            raise FormatError("VHD", reason, self._position)
        footer = parse_footer(self._rest, self._position)
        if footer != self.head.footer:
            raise FormatError("VHD", "the footer at the end is not the one at the beginning", self._position)

    def _read_head(self, data: bytes) -> int | None:
        """Parse the head, and check where its blocks stand. Returns its length, None if there is too little yet."""
        self.head = parse_head(data)
        if self.head is None:
            if len(data) > _MAX_HEAD:
                raise FormatError("VHD", "the head has no end", 0)
            return None
        header = self.head.header
        end = header.bat_offset + header.bat_length
        length = header.bitmap_length + header.block_size
        present = sorted((sector * SECTOR, n) for n, sector in enumerate(self.head.bat) if sector != ABSENT)
        at = end
        for start, number in present:
            if start < at:
                raise FormatError("VHD", f"block {number} overlaps what stands before it", start)
            if number * header.block_size >= self.head.size:
                raise FormatError("VHD", f"block {number} lies behind the disk's end", start)
            at = start + length
        self._blocks = present[::-1]
        return end

    def _step(self, view: memoryview) -> tuple[int, list[Data]]:
        """How many bytes of `view` can be used now, and what data is in them."""
        assert self.head is not None
        header = self.head.header
        if self._block is None:
            if not self._blocks:
                return self._keep_footer(view)
            start, number = self._blocks[-1]
            gap = start - self._position
            if gap:
                return min(gap, len(view)), []
            if len(view) < header.bitmap_length:
                return 0, []
            self._blocks.pop()
            self._block, self._left = number, header.block_size
            self._bitmap = bytes(view[: header.bitmap_length])
            return header.bitmap_length, []
        whole = min(len(view), self._left) // SECTOR * SECTOR
        if not whole:
            return 0, []
        within = header.block_size - self._left
        data = list(self._runs(self._block * header.block_size + within, within // SECTOR, view[:whole]))
        self._left -= whole
        if not self._left:
            self._block = None
        return whole, data

    def _keep_footer(self, view: memoryview) -> tuple[int, list[Data]]:
        """After the last block only the footer is kept; a batmap or a gap before it is passed over."""
        return max(0, len(view) - SECTOR), []

    def _runs(self, offset: int, first: int, view: memoryview) -> Iterator[Data]:
        """Runs of sectors whose bit is set; `first` is the number of the first sector within its block."""
        count = len(view) // SECTOR
        if first % 8 == 0 and self._bitmap[first // 8 : -(-(first + count) // 8)].strip(b"\xff") == b"":
            yield Data(offset, view)
            return
        start: int | None = None
        for n in range(count + 1):
            present = n < count and self._bitmap[(first + n) // 8] & (0x80 >> (first + n) % 8)
            if present and start is None:
                start = n
            elif not present and start is not None:
                yield Data(offset + start * SECTOR, view[start * SECTOR : n * SECTOR])
                start = None
