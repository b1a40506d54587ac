"""The system calls that change a directory back end, in one place.

A test records them and replays every prefix, with what was not synced yet dropped, to prove what a power cut can do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mover.store.backend import Buffer

# Linux takes at most 1024 buffers per call (IOV_MAX).
_MAX_BUFFERS = 1024


class FileOps:
    """The real thing. Paths are absolute; all raise `OSError`."""

    def create(self, path: str) -> int:
        """A new file that must not exist, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        """Append all of `buffers`."""
        for first in range(0, len(buffers), _MAX_BUFFERS):
            batch = buffers[first : first + _MAX_BUFFERS]
            written = os.writev(fd, batch)
            if written < sum(map(len, batch)):
                self._write_rest(fd, b"".join(batch), written)

    def _write_rest(self, fd: int, data: bytes, written: int) -> None:
        view = memoryview(data)
        while written < len(view):
            written += os.write(fd, view[written:])

    def sync(self, fd: int) -> None:
        """Make the file's content and size durable."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close the file."""
        os.close(fd)

    def link(self, source: str, target: str) -> None:
        """Give the file a second name, which must not exist."""
        os.link(source, target)

    def unlink(self, path: str) -> None:
        """Take a name away."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """A new directory that must not exist."""
        os.mkdir(path, 0o700)

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
