"""A whole file as memory, and writing one so that little of it is memory at a time."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from itertools import repeat

from mover.errors import StoreIoError
from mover.store.backend import Buffer

# Up to this size a file is read rather than mapped: each mapping holds two descriptors.
_SMALL = 256 << 10
# What is mapped and read here and there is written in pieces of this size: Linux keeps a file in memory in pieces of up
# to 2 MiB, as they were written, and a fault maps all of one (seen on 6.18 with ext4).
_PIECE = 64 << 10


class MappedFile(mmap.mmap):
    """A mapped file of which a few bytes here and there can be read, too, without keeping whole pages of it."""

    path: str
    _descriptor: int

    @classmethod
    def of(cls, path: str, descriptor: int, size: int) -> MappedFile:
        """Takes over the descriptor, which is closed with the last view of the mapping."""
        mapped = cls(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        mapped.path, mapped._descriptor = path, descriptor
        weakref.finalize(mapped, os.close, descriptor)
        return mapped

    def read_each(self, offsets: Sequence[int], length: int) -> bytes:
        """`length` bytes at each of these offsets, joined together. Raises `StoreIoError`."""
        try:
            read = b"".join(map(os.pread, repeat(self._descriptor), repeat(length), offsets))
        except OSError as error:
            raise StoreIoError(f"cannot read {self.path}: {error.strerror}") from error
        if len(read) != length * len(offsets):
            raise StoreIoError(f"{self.path} has become shorter than it was")
        return read


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """The file, read-only; a large one is mapped, and shared by all processes through the page cache.

    Raises `OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size > _SMALL:
            mapped = MappedFile.of(os.fspath(path), fd, size)
            fd = -1
            return memoryview(mapped)
        return memoryview(os.pread(fd, size, 0))
    finally:
        if fd >= 0:
            os.close(fd)


def pieces(buffers: Sequence[Buffer]) -> Iterator[Sequence[Buffer]]:
    """What to write at a time of a file that is going to be mapped."""
    if sum(map(len, buffers)) <= _PIECE:
        yield buffers
        return
    for buffer in buffers:
        for start in range(0, len(buffer), _PIECE):
            yield [memoryview(buffer)[start : start + _PIECE]]
