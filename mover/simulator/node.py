"""One file in a chain of disk images: what was written while it was on top, at 64 KiB granularity."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mover.simulator.granules import GranuleMap, granules
from mover.simulator.sparse import ZEROS, copy_range, data_of, split_zeros, write_range
from protocol.cbt import GRANULE
from protocol.extent import Extent, align, merge, subtract

# Granules looked at in one go: 1 GiB of disk.
_WINDOW = 16_384


class Run(NamedTuple):
    """`length` bytes of a disk: at `file_offset` of the open file `fd`, or zeros if that is None."""

    fd: int | None
    file_offset: int
    length: int


class Node:
    """A sparse file with the disk's own offsets, and a map of the granules that are in it.

    The file's bytes past `size`, up to a whole granule, are zeros. Files are made when something is first written.
    """

    def __init__(self, directory: Path, name: str, parent: Node | None, size: int) -> None:
        self.name = name
        self.parent = parent
        self.size = size
        self.present = GranuleMap(directory / f"{name}.map", granules(size))
        self.count = self.present.marked()
        self._path = directory / f"{name}.data"
        self._fd = os.open(self._path, os.O_RDWR) if self._path.exists() else -1

    @property
    def fd(self) -> int:
        """The open file."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            os.truncate(self._fd, granules(self.size) * GRANULE)
        return self._fd

    def chain(self) -> list[Node]:
        """This node and those under it, the oldest first."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def has_any(self, first: int, end: int) -> bool:
        """Whether any of these granules is in this file."""
        view = self.present.view(first, end)
        return view is not None and bool(view.any())

    def extents(self) -> list[Extent]:
        """What is in this file, in whole granules."""
        return merge(Extent(first * GRANULE, (end - first) * GRANULE) for first, end in self.present.runs())

    def mark(self, first: int, end: int) -> None:
        """Granules `first` up to `end` are in this file now."""
        self.count += self.present.mark(first, end)

    def store(self, offset: int, view: memoryview) -> None:
        """Write bytes into the file; zeros where nothing is yet stay a hole. `mark` is to follow."""
        for start, end, zero in split_zeros(offset, view):
            if not zero or self.has_any(start // GRANULE, end // GRANULE):
                write_range(self.fd, start, view[start - offset : end - offset])

    def resize(self, size: int) -> None:
        """Grow."""
        self.present.resize(granules(size))
        if self._fd >= 0:
            os.truncate(self._fd, granules(size) * GRANULE)
        self.size = size

    def adopt(self, path: Path) -> None:
        """Take the file at `path` as the content of this empty node."""
        self.close()
        path.rename(self._path)
        self._fd = os.open(self._path, os.O_RDWR)
        os.truncate(self._fd, granules(self.size) * GRANULE)

    def absorb(self, child: Node) -> None:
        """Take over everything that is in `child`."""
        if child.size > self.size:
            self.resize(child.size)
        for extent in child.extents():
            copy_range(child.fd, self.fd, extent.offset, extent.length)
        self.count += self.present.merge(child.present)

    def scrub(self) -> None:
        """Zero what is in the file but not in the map: a write that was killed in between. Holes are relied on."""
        if self._fd >= 0:
            whole = granules(self.size) * GRANULE
            written = align(data_of(self._fd, whole), GRANULE, whole)
            for extent in subtract(written, self.extents()):
                for offset in range(extent.offset, extent.end, GRANULE):
                    write_range(self._fd, offset, memoryview(ZEROS))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the files. What is open stays readable until `close`."""
        self._path.unlink(missing_ok=True)
        self.present.remove()


def owners(chain: Sequence[Node], first: int, end: int) -> Iterator[tuple[int, int, Node | None]]:
    """Runs of granules (first, end) between `first` and `end`, and the topmost node of the chain that has each."""
    for start in range(first, end, _WINDOW):
        stop = min(end, start + _WINDOW)
        owner = np.full(stop - start, -1, dtype=np.int16)
        for place, node in enumerate(chain):
            view = node.present.view(start, stop)
            if view is not None:
                owner[: len(view)][view != 0] = place
        cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), stop - start]
        for left, right in pairwise(cuts):
            place = int(owner[left])
            yield start + left, start + right, None if place < 0 else chain[place]


def runs(chain: Sequence[Node], offset: int, length: int) -> Iterator[Run]:
    """Where the bytes of a disk are. The chain is looked at window by window as the iteration proceeds."""
    end = offset + length
    if length <= 0:
        return
    for first, last, node in owners(chain, offset // GRANULE, granules(end)):
        start = max(offset, first * GRANULE)
        stop = min(end, last * GRANULE)
        yield Run(None, 0, stop - start) if node is None else Run(node.fd, start, stop - start)
