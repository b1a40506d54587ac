"""Copies of index segments on this machine, so that they can be memory-mapped, shared by all processes of a user.

A copy is made under another name, synced, and renamed: one with a good name is whole. Its name says its XXH3, which is
compared once a day. Any of them may be deleted at any time: who has it mapped keeps it, and who misses it asks the
store. Those that nobody has opened for a week go when another one comes: they were merged into others.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xxhash import xxh3_64

from mover.errors import StoreIoError
from mover.store.file_map import map_file, pieces
from mover.store.file_ops import FileOps

_DAY = 86400.0
_UNUSED = 7 * _DAY
_PIECE = 4 << 20
_COPY = re.compile(r"[a-z0-9._+-]+@([0-9a-f]{16})")
_OURS = re.compile(rf"{_COPY.pattern}|[0-9a-f]{{16}}\.partial")


def cache_directory() -> str:
    """The folder for all stores: `$XDG_CACHE_HOME/mover`, else `~/.cache/mover`."""
    base = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if (home := os.environ.get("HOME")) else "")
    return f"{base or tempfile.gettempdir()}/mover"


class Source(Protocol):
    """Where the objects are."""

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | bytearray:
        """At most `length` bytes from `offset` on; fewer at the end. Raises `ObjectMissingError`."""


@dataclass(frozen=True)
class LocalCopies:
    """Copies of objects of `backend` in `folder`. Any thread may use it."""

    backend: Source
    folder: Path
    clock: Callable[[], float] = time.time

    def map(self, key: str) -> memoryview:
        """The whole object, mapped from its copy, which is made if there is none.

        Raises `ObjectMissingError`, and `StoreIoError` if there is no room for the copy.
        """
        with self._writing():
            path = self._find(key)
            if path is None:
                path = self._fetch(key)
            try:
                return map_file(path)
            except FileNotFoundError:
                return map_file(self._fetch(key))

    def renew(self) -> None:
        """Delete the copies of this store."""
        for path in self.folder.glob("*@*"):
            with suppress(OSError):
                path.unlink()

    def _find(self, key: str) -> Path | None:
        """A copy that is what its name says."""
        for path in self.folder.glob(f"{_name(key)}@*"):
            found = _COPY.fullmatch(path.name)
            with suppress(FileNotFoundError):
                if found and (self.clock() - path.stat().st_mtime < _DAY or _check(path) == found[1]):
                    return path
                path.unlink()
        return None

    def _fetch(self, key: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._drop_unused()
        unfinished = self.folder / f"{secrets.token_hex(8)}.partial"
        hasher = xxh3_64()
        try:
            with open(unfinished, "xb", buffering=0) as file:
                for piece in _ahead(self._pieces(key)):
                    hasher.update(piece)
                    for part in pieces([piece]):
                        FileOps().write(file.fileno(), part)
                os.fsync(file.fileno())
            path = self.folder / f"{_name(key)}@{hasher.hexdigest()}"
            unfinished.rename(path)
            return path
        finally:
            unfinished.unlink(missing_ok=True)

    def _drop_unused(self) -> None:
        """Of this store and of others: a copy that is used is looked at every day."""
        for path in self.folder.parent.glob("*/*"):
            with suppress(OSError):
                if self.clock() - path.stat().st_mtime > _UNUSED and _OURS.fullmatch(path.name):
                    path.unlink()

    def _pieces(self, key: str) -> Iterator[bytes | bytearray]:
        offset = 0
        while piece := self.backend.get(key, offset, _PIECE):
            yield piece
            if len(piece) < _PIECE:
                return
            offset += len(piece)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreIoError(
                f"cannot keep a copy of the index in {self.folder}: {error.strerror}",
                "make room there, or set XDG_CACHE_HOME to a folder of this user",
            ) from error


def _ahead(items: Iterator[bytes | bytearray]) -> Iterator[bytes | bytearray]:
    """The next one is fetched, and decrypted, while the last one is written."""
    with ThreadPoolExecutor(1, "mover-copy") as fetching:
        following = fetching.submit(next, items, None)
        while (item := following.result()) is not None:
            following = fetching.submit(next, items, None)
            yield item


def _name(key: str) -> str:
    return key.replace("/", "+")


def _check(path: Path) -> str:
    """The XXH3 of a file; that it was looked at is noted in its time."""
    hasher = xxh3_64()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    os.utime(path)
    return hasher.hexdigest()
