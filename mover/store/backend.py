"""The seam between the store and the place that keeps its objects: put-if-absent, ranged get, list, delete.

An object is written once, whole, and never changes. Nothing here relies on rename, append or locks, so that an object
storage can stand where a directory stands today. Keys are relative paths of `[a-z0-9._-]` joined by `/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Tuning:
    """What pays off at a back end. Other values would be slow or dear, never wrong.

    `gap`: bytes between two records that are read along rather than asked for separately. `run`: the longest read in
    bytes. `requests`: how many at once. `uploads`: packs on their way at once. `pack_target`: bytes, of new stores.
    """

    gap: int
    run: int
    requests: int
    uploads: int
    pack_target: int


LOCAL = Tuning(gap=32 << 10, run=4 << 20, requests=1, uploads=1, pack_target=64 << 20)
# A request takes some 20 ms, in which 1 MiB or more comes by. A pack on its way is held in memory.
REMOTE = Tuning(gap=512 << 10, run=8 << 20, requests=8, uploads=3, pack_target=16 << 20)


class ObjectMissingError(Exception):
    """There is no object under this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Upload(Protocol):
    """An object being written. It has no name until `commit`; use it from one thread at a time."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append `buffers` in order. Raises `StoreFullError`, `StoreIoError`."""

    def commit(self) -> bool:
        """Make the object durable under its key, atomically. False if the key exists: nothing is changed then.

        Raises `StoreUnansweredError` if it may or may not last.
        """

    def abort(self) -> None:
        """Forget what was written. Harmless after `commit`."""


class Backend(Protocol):
    """Objects under keys. All methods may be called from any thread and raise `StoreFullError` or `StoreIoError`.

    There are four things to do with an object: put it if it is absent (`put`, and `create` for what is written piece
    by piece), get a range of it (`get`, `read_into`), list, delete.
    """

    @property
    def tuning(self) -> Tuning:
        """What pays off here."""

    @property
    def location(self) -> str:
        """Where this is, for messages."""

    def create(self, key: str) -> Upload:
        """Begin to write the object `key`."""

    def put(self, key: str, data: bytes) -> bool:
        """Write a small object, durable on return. False if it exists, which lasts then.

        Raises `StoreUnansweredError` if it may or may not have been written, or may be written yet.
        """

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """At most `length` bytes from `offset` on; fewer at the end. Raises `ObjectMissingError`."""

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        """Like `get`, into `view`; the number of bytes, less than `len(view)` only at the object's end."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and size of every object whose key starts with `prefix` (ends with `/` or is empty), in no set order."""

    def delete(self, key: str, *, durable: bool = False) -> None:
        """Remove an object; removing one that is not there is no error. If `durable`, it does not come back."""

    def close(self) -> None:
        """Let go of descriptors and connections. Uploads under way are not affected."""


@runtime_checkable
class Mapping(Protocol):
    """Where whole objects can be had as memory: a back end whose objects are files, or a folder of copies."""

    def renew(self) -> None:
        """Let go of copies: from now on objects are looked at themselves."""

    def map(self, key: str) -> memoryview:
        """The whole object, read-only and memory-mapped if it is large. Raises `ObjectMissingError`."""
