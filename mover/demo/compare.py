"""Compare two files byte by byte, skipping what is a hole in both."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from protocol.extent import Extent, merge, split

_PIECE = 1 << 20


def first_difference(left: Path, right: Path) -> int | None:
    """The offset of the first byte in which two files differ, None if they are identical.

    A file that is longer than the other may only have zeros there: pools round the size of disks up.
    """
    with left.open("rb", buffering=0) as one, right.open("rb", buffering=0) as other:
        extents = merge([*_data(one.fileno()), *_data(other.fileno())])
        for piece in split(extents, _PIECE):
            mine = os.pread(one.fileno(), piece.length, piece.offset).ljust(piece.length, b"\0")
            theirs = os.pread(other.fileno(), piece.length, piece.offset).ljust(piece.length, b"\0")
            if mine != theirs:
                return piece.offset + next(n for n in range(piece.length) if mine[n] != theirs[n])
    return None


def _data(descriptor: int) -> Iterator[Extent]:
    """The extents of a file that are not holes."""
    size = os.fstat(descriptor).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield Extent(start, position - start)
