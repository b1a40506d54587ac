"""A whole file as memory."""

from __future__ import annotations

import mmap
import os

# Up to this size a file is read rather than mapped: each mapping holds a descriptor.
_SMALL = 256 << 10


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
