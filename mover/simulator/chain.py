"""Nodes of snapshot chains: sparse files, each with the granules that were written while it was on top.

Which granules a node has follows from its file's holes, so nothing has to be written to find them after a crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mover.simulator.cbt_log import GRANULE, granules

Present = npt.NDArray[np.bool_]


@dataclass(eq=False)
class Node:
    """One file of a chain. `parent` holds what this one does not. A file's offsets are the disk's."""

    id: str
    path: Path
    parent: Node | None
    present: Present
    descriptor: int = field(default=-1, repr=False)

    @classmethod
    def open(cls, path: Path, parent: Node | None, size: int) -> Node:
        """Open or make the file of a node."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        present = np.zeros(granules(size), np.bool_)
        for start, end in data_of(descriptor):
            present[start // GRANULE : granules(end)] = True
        return cls(path.name, path, parent, present, descriptor)

    def chain(self) -> Iterator[Node]:
        """This node and its ancestors, the topmost first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def grow(self, size: int) -> None:
        """Make room for more granules."""
        extra = granules(size) - len(self.present)
        if extra > 0:
            self.present = np.concatenate([self.present, np.zeros(extra, np.bool_)])

    def has(self, first: int, end: int) -> Present:
        """Which of the granules from `first` to before `end` this node holds; beyond its own end it holds none."""
        found = self.present[first:end]
        return found if len(found) == end - first else np.pad(found, (0, end - first - len(found)))

    def remove(self) -> None:
        """Close and delete the file."""
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


def data_of(descriptor: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of a file that is no hole."""
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
        yield start, position


def copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Copy bytes between two files at the same offset; what the source lacks is written as zeros."""
    while length:
        piece = os.pread(source, min(length, 1 << 20), offset)
        piece = piece or bytes(min(length, 1 << 20))
        os.pwrite(target, piece, offset)
        offset += len(piece)
        length -= len(piece)
