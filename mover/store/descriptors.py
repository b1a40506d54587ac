"""Open files, kept for the next read of the same object."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_KEPT = 128


class _File:
    __slots__ = ("fd", "kept", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.kept = True


class Descriptors:
    """At most 128 files stay open; one in use is closed only after its last user has left."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def borrow(self, path: str) -> Iterator[int]:
        """A descriptor open for reading. Raises `OSError`."""
        file = self._enter(path)
        try:
            yield file.fd
        finally:
            with self._lock:
                file.users -= 1
                self._close_unused(file)

    def forget(self, path: str) -> None:
        """Do not hand out the file under this name again."""
        with self._lock:
            if (file := self._files.pop(path, None)) is not None:
                self._drop(file)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            while self._files:
                self._drop(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _enter(self, path: str) -> _File:
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                if len(self._files) > _KEPT:
                    self._drop(self._files.popitem(last=False)[1])
            else:
                self._files.move_to_end(path)
            file.users += 1
            return file

    def _drop(self, file: _File) -> None:
        file.kept = False
        self._close_unused(file)

    def _close_unused(self, file: _File) -> None:
        if not file.users and not file.kept:
            os.close(file.fd)
