"""How content lies in a file: of a format that holds one disk. The same content is always the same file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from protocol.extent import Extent, split
from protocol.vhd import BLOCK_SIZE, SECTOR, VhdWriter, stream_length


class Stored(NamedTuple):
    """From byte `at` of the file on: this part of the disk."""

    at: int
    extent: Extent

    @property
    def length(self) -> int:
        return self.extent.length


class Given(NamedTuple):
    """From byte `at` of the file on: these bytes."""

    at: int
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


class Checked(NamedTuple):
    """From byte `at` of the file on: this part of the disk, then the `tail_length` bytes that `tail` makes of it."""

    at: int
    extent: Extent
    tail: Callable[[memoryview], bytes]
    tail_length: int

    @property
    def length(self) -> int:
        return self.extent.length + self.tail_length


Part = Stored | Given | Checked


class Layout(NamedTuple):
    """A file of `length` bytes: what `parts` gives, in order of the file; everything else in it is zeros."""

    length: int
    parts: Callable[[], Iterator[Part]]


@dataclass(frozen=True)
class DiskContent:
    """What a layout is made for: size in bytes, the parts that are no holes, and an id that is this content's alone."""

    size: int
    extents: Sequence[Extent]
    unique_id: UUID


def raw_layout(disk: DiskContent, piece: int) -> Layout:
    """The disk byte for byte, in parts of at most `piece` bytes."""
    return Layout(disk.size, lambda: (Stored(part.offset, part) for part in split(disk.extents, piece)))


def vhd_layout(disk: DiskContent, piece: int) -> Layout:
    """A dynamic VHD of a disk of at most `protocol.vhd.MAX_SIZE` bytes, in parts of at most `piece` bytes.

    Blocks without data are absent, and what is zeros within a block stays a hole of the file.
    """
    limit = min(piece, BLOCK_SIZE)
    blocks = list(dict.fromkeys(part.offset // BLOCK_SIZE for part in split(disk.extents, BLOCK_SIZE)))
    writer = VhdWriter(disk.size, blocks, creator=b"tap\0", unique_id=disk.unique_id)

    def parts() -> Iterator[Stored | Given]:
        head = writer.head()
        yield Given(0, head)
        begin = len(head) - (SECTOR + BLOCK_SIZE)
        last = -1
        for part in split(disk.extents, limit):
            block, within = divmod(part.offset, BLOCK_SIZE)
            if block != last:
                begin, last = begin + SECTOR + BLOCK_SIZE, block
                yield Given(begin, writer.block_prefix())
            yield Stored(begin + SECTOR + within, part)
        yield Given(begin + SECTOR + BLOCK_SIZE, writer.trailer())

    return Layout(stream_length(disk.size, len(blocks)), parts)
