"""Sparse files: where their data are, copying and reading them, and a hash that does not depend on holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from protocol.cbt import GRANULE
from protocol.extent import Extent, align

_PIECE = 4 << 20
ZEROS = bytes(GRANULE)


def data_of(fd: int, size: int) -> Iterator[Extent]:
    """The parts of a file of `size` bytes that are not holes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield Extent(start, position - start)


def read_range(fd: int, offset: int, length: int) -> bytes:
    """Bytes of a file; what lies past its end reads as zeros."""
    parts = []
    while length > 0:
        data = os.pread(fd, length, offset) or bytes(length)
        parts.append(data)
        offset += len(data)
        length -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_range(fd: int, offset: int, data: memoryview) -> None:
    """Write all of `data`."""
    while data:
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]


def copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Copy bytes between two files, at the same offset; within the kernel where it can."""
    end = offset + length
    while offset < end:
        try:
            copied = os.copy_file_range(source, target, min(end - offset, 1 << 30), offset, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            data = os.pread(source, min(end - offset, _PIECE), offset)
            write_range(target, offset, memoryview(data))
            copied = len(data)
        if copied == 0:
            return
        offset += copied


def split_zeros(offset: int, view: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Cut a write at byte `offset` of a disk into runs: start, end, whether it is whole granules of zeros."""
    end = offset + len(view)
    start = position = offset
    zero = False
    while position < end:
        edge = min(end, (position // GRANULE + 1) * GRANULE)
        empty = edge - position == GRANULE and ZEROS.startswith(view[position - offset : edge - offset])
        if empty != zero and position > start:
            yield start, position, zero
            start = position
        zero = empty
        position = edge
    if position > start:
        yield start, position, zero


class Digest:
    """BLAKE3 over the size and over number and content of each 64 KiB that are not all zeros."""

    def __init__(self, size: int) -> None:
        self._hasher = blake3(size.to_bytes(8, "big"))

    def add(self, fd: int, offset: int, length: int) -> None:
        """Take in part of a file: it starts at a multiple of 64 KiB, and the parts come in order."""
        for start in range(offset, offset + length, _PIECE):
            piece = memoryview(read_range(fd, start, min(_PIECE, offset + length - start)))
            for at in range(0, len(piece), GRANULE):
                content = piece[at : at + GRANULE]
                if not ZEROS.startswith(content):
                    self._hasher.update(((start + at) // GRANULE).to_bytes(8, "big"))
                    self._hasher.update(content if len(content) == GRANULE else bytes(content).ljust(GRANULE, b"\0"))

    def hexdigest(self) -> str:
        """The hash so far."""
        return str(self._hasher.hexdigest())


def digest_file(path: Path, size: int | None = None) -> str:
    """What `Disks.digest` gives for a disk with this content, of `size` bytes (default: as long as the file)."""
    with path.open("rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        hasher = Digest(length if size is None else size)
        for extent in align(data_of(file.fileno(), length), GRANULE, length):
            hasher.add(file.fileno(), extent.offset, extent.length)
        return hasher.hexdigest()
