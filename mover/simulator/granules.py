"""A flag for each 64 KiB of a disk, kept in a sparse file so that it survives the death of the process.

One byte per granule, mapped into memory: a disk of 1 TiB has a map of 16 MiB of which only the touched pages exist,
and marking is a store to memory. A map nobody marked has no file.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.cbt import GRANULE

Flags = npt.NDArray[np.uint8]


def granules(size: int) -> int:
    """How many granules a disk of `size` bytes has; the last may not be whole."""
    return -(-size // GRANULE)


class GranuleMap:
    """The flags of a disk of `count` granules, in the file `path`."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count
        self._flags: Flags | None = None
        if path.exists():
            self._map()

    def __len__(self) -> int:
        return self._count

    @property
    def flags(self) -> Flags | None:
        """All flags, 0 or 1 each; None if none was ever set. It becomes stale with `resize`."""
        return self._flags

    def view(self, first: int, end: int) -> Flags | None:
        """The flags of granules `first` up to `end`, fewer if the map ends before; None if none is set at all."""
        return None if self._flags is None else self._flags[first:end]

    def mark(self, first: int, end: int) -> int:
        """Set flags; returns how many were not set before."""
        flags = self._flags if self._flags is not None else self._map()
        fresh = end - first - int(np.count_nonzero(flags[first:end]))
        flags[first:end] = 1
        return fresh

    def merge(self, other: GranuleMap) -> int:
        """Set every flag that is set in `other`, which is not longer; returns how many were not set before."""
        if other.flags is None:
            return 0
        mine = (self._flags if self._flags is not None else self._map())[: len(other.flags)]
        before = int(np.count_nonzero(mine))
        np.bitwise_or(mine, other.flags, out=mine)
        return int(np.count_nonzero(mine)) - before

    def marked(self) -> int:
        """How many flags are set."""
        return 0 if self._flags is None else int(np.count_nonzero(self._flags))

    def resize(self, count: int) -> None:
        """Make the map longer; the new flags are not set."""
        if count < self._count:
            raise ValueError("a map of granules only grows")
        self._count = count
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
        finally:
            os.close(fd)
        return self._flags
