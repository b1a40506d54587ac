"""How a VM lies in an XVA file: the description, then each disk in blocks with their checksums behind them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mover.restore.layout import Checked, Given, Layout, Stored
from mover.restore.xva import Content, xva_writer
from mover.store import DiskReader
from protocol.extent import Extent
from protocol.xva.ova import Ova
from protocol.xva.reader import BLOCK


class DisksInTurn:
    """Several disks as one: each begins at a multiple of `unit` bytes behind the one before it."""

    def __init__(self, disks: Sequence[DiskReader], unit: int) -> None:
        self._disks = disks
        self.starts: list[int] = []
        end = 0
        for disk in disks:
            self.starts.append(end)
            end += -(-disk.size // unit) * unit

    def read_into(self, offset: int, view: memoryview) -> None:
        """See `DiskReader.read_into`; the view lies within one disk."""
        number = self._at(offset)
        self._disks[number].read_into(offset - self.starts[number], view)

    def differing(self, offset: int, view: memoryview) -> list[Extent]:
        """See `DiskReader.differing`; the view lies within one disk."""
        number = self._at(offset)
        start = self.starts[number]
        found = self._disks[number].differing(offset - start, view)
        return [Extent(start + extent.offset, extent.length) for extent in found]

    def _at(self, offset: int) -> int:
        return bisect_right(self.starts, offset) - 1


class XvaLayout(NamedTuple):
    """`layout` is of the file, its parts are of `disks`; `data` are the bytes of disks that it holds."""

    layout: Layout
    disks: DisksInTurn
    data: int


def xva_layout(ova: Ova, disks: Mapping[str, Content]) -> XvaLayout:
    """An XVA of the disks, by their ids in `ova`. Raises `ValueError` if the format cannot hold them."""
    writer = xva_writer(ova, disks)
    together = DisksInTurn([disks[disk.ref].reader for disk in writer.disks], BLOCK)

    def parts() -> Iterator[Stored | Given | Checked]:
        head = writer.head()
        yield Given(0, head)
        at = len(head)
        for disk, start in zip(writer.disks, together.starts, strict=True):
            for number, offset, length in writer.disk_blocks(disk):
                header = writer.block_head(disk.ref, number, length)
                yield Given(at, header)

                def tail(view: memoryview, ref: str = disk.ref, number: int = number) -> bytes:
                    return writer.block_padding(len(view)) + writer.block_tail(ref, number, writer.digest(view))

                checked = Checked(at + len(header), Extent(start + offset, length), tail, writer.tail_length(length))
                yield checked
                at = checked.at + checked.length
        yield Given(at, writer.trailer())

    data = sum(block.length for disk in writer.disks for block in writer.disk_blocks(disk))
    return XvaLayout(Layout(writer.length, parts), together, data)
