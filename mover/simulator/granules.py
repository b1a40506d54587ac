"""A flag for each 64 KiB of a disk, kept in a sparse file so that it survives the death of the process.

One byte per granule, mapped into memory: a disk of 1 TiB has a map of 16 MiB of which only the pages exist that were
written, and only those are ever looked at. A map nobody marked has no file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mover.simulator.sparse import data_of
from protocol.cbt import GRANULE

Flags = npt.NDArray[np.uint8]
# Granules that share a page of the map: 256 MiB of disk.
_PAGE = 4096


def granules(size: int) -> int:
    """How many granules a disk of `size` bytes has; the last may not be whole."""
    return -(-size // GRANULE)


class GranuleMap:
    """The flags of a disk of `count` granules, in the file `path`."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count
        self._flags: Flags | None = None
        self._touched = bytearray(-(-count // _PAGE))  # for each page, whether any flag in it was ever set
        if path.exists():
            self._map()

    def __len__(self) -> int:
        return self._count

    def view(self, first: int, end: int) -> Flags | None:
        """The flags of granules `first` up to `end`, fewer if the map ends before; None if none of them is set."""
        if self._flags is None or not any(self._touched[first // _PAGE : -(-end // _PAGE)]):
            return None
        return self._flags[first:end]

    def parts(self) -> Iterator[tuple[int, Flags]]:
        """The stretches in which flags may be set: the first granule, and the flags from there on."""
        for page, touched in enumerate(self._touched):
            if touched and self._flags is not None:
                yield page * _PAGE, self._flags[page * _PAGE : (page + 1) * _PAGE]

    def mark(self, first: int, end: int) -> int:
        """Set flags; returns how many were not set before."""
        flags = self._flags if self._flags is not None else self._map()
        fresh = end - first - int(np.count_nonzero(flags[first:end]))
        flags[first:end] = 1
        pages = slice(first // _PAGE, -(-end // _PAGE))
        self._touched[pages] = b"\1" * (pages.stop - pages.start)
        return fresh

    def merge(self, other: GranuleMap) -> int:
        """Set every flag that is set in `other`, which is not longer; returns how many were not set before."""
        return sum(self.mark(first, end) for first, end in other.runs())

    def runs(self) -> Iterator[tuple[int, int]]:
        """Runs of set flags: the first, and the one after the last. A run may be given in several parts."""
        for start, flags in self.parts():
            edges = start + np.flatnonzero(np.diff(flags, prepend=np.uint8(0), append=np.uint8(0)))
            yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)

    def marked(self) -> int:
        """How many flags are set."""
        return sum(int(np.count_nonzero(flags)) for _, flags in self.parts())

    def resize(self, count: int) -> None:
        """Make the map longer; the new flags are not set."""
        if count < self._count:
            raise ValueError("a map of granules only grows")
        self._count = count
        self._touched.extend(bytes(-(-count // _PAGE) - len(self._touched)))
        if self._flags is not None:
            self._map()

    def remove(self) -> None:
        """Delete the file. What was mapped stays readable for who holds it."""
        self._path.unlink(missing_ok=True)

    def _map(self) -> Flags:
        length = max(1, self._count)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.truncate(fd, length)
            self._flags = np.frombuffer(mmap.mmap(fd, length), dtype=np.uint8, count=self._count)
            for extent in data_of(fd, self._count):
                for page in range(extent.offset // _PAGE, -(-extent.end // _PAGE)):
                    self._touched[page] = 1
        finally:
            os.close(fd)
        return self._flags
