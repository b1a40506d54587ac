"""A whole file as memory, and writing one so that little of it is memory at a time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence

from mover.store.backend import Buffer

# Up to this size a file is read rather than mapped: each mapping holds a descriptor.
_SMALL = 256 << 10
# What is mapped and read here and there is written in pieces of this size: Linux keeps a file in memory in pieces of up
# to 2 MiB, as they were written, and a fault maps all of one (seen on 6.18 with ext4).
_PIECE = 64 << 10


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """The file, read-only; a large one is mapped, and shared by all processes through the page cache.

    Raises `OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size <= _SMALL:
            return memoryview(os.pread(fd, size, 0))
        return memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ))
    finally:
        os.close(fd)


def pieces(buffers: Sequence[Buffer]) -> Iterator[Sequence[Buffer]]:
    """What to write at a time of a file that is going to be mapped."""
    if sum(map(len, buffers)) <= _PIECE:
        yield buffers
        return
    for buffer in buffers:
        for start in range(0, len(buffer), _PIECE):
            yield [memoryview(buffer)[start : start + _PIECE]]
