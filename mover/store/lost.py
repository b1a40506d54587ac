"""What restore points have lost, and the note of it that backups read: they must not build on what is not all there.

`damage/<wid>`, written by a repair, lists the roots of trees that lack something. The newest repair's is the one that
counts; it is removed by a repair that finds nothing missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mover.errors import StoreDamagedError
from mover.store import segment as segments
from mover.store.backend import Backend, ObjectMissingError
from mover.store.cipher import BadSealError
from mover.store.identity import ID_LENGTH, ZERO_ID, Identity
from mover.store.index import IndexView, split_ids
from mover.store.names import DAMAGE, damage_key, new_writer_id, parse_damage
from mover.store.page import FANOUT, root_level
from mover.store.pages import PageCache, count_chunks
from protocol.extent import Extent, merge

_HEAD = b"MVLOST\0\x01"
# In one note; more than these take several.
MAX_ROOTS = 1 << 20
_MAX_LENGTH = 33 << 20


class LostParts:
    """Finds the parts of disks whose records no usable pack holds. `without` are records that do not count, either."""

    def __init__(
        self, view: IndexView, cache: PageCache, chunk_size: int, without: frozenset[bytes] = frozenset()
    ) -> None:
        self._view = view
        self._cache = cache
        self._chunk_size = chunk_size
        self._without = without
        self._whole: set[bytes] = set()

    def has(self, id: bytes) -> bool:
        """Whether a record can be read, as far as the index knows."""
        return not self._missing([id])

    def of(self, root: bytes, size: int) -> list[Extent]:
        """The lost parts of a disk of `size` bytes, in order."""
        if root == ZERO_ID:
            return []
        level = root_level(count_chunks(size, self._chunk_size))
        found = merge(self._below(level, 0, root))
        return [Extent(part.offset, min(part.end, size) - part.offset) for part in found if part.offset < size]

    def _below(self, level: int, number: int, id: bytes) -> Iterator[Extent]:
        """What is lost of page `number` of `level`. Subtrees that are whole are not entered twice."""
        if id in self._whole:
            return
        reach = self._chunk_size * FANOUT ** (level + 1)
        if self._missing([id]):
            yield Extent(number * reach, reach)
            return
        try:
            ids = split_ids(self._cache.get(level, id))
        except StoreDamagedError:
            yield Extent(number * reach, reach)
            return
        lost = False
        for part in self._children(level, number, ids):
            lost = True
            yield part
        if not lost:
            self._whole.add(id)

    def _children(self, level: int, number: int, ids: list[bytes]) -> Iterator[Extent]:
        if level == 0:
            missing = self._missing([id for id in ids if id != ZERO_ID])
            for at, id in enumerate(ids):
                if id in missing:
                    yield Extent((number * FANOUT + at) * self._chunk_size, self._chunk_size)
            return
        for at, id in enumerate(ids):
            if id != ZERO_ID:
                yield from self._below(level - 1, number * FANOUT + at, id)

    def _missing(self, ids: list[bytes]) -> set[bytes]:
        found = np.zeros(len(ids), np.bool_)
        if ids:
            for _, which, _ in self._view.find(segments.keys_of(b"".join(ids))):
                found[which] = True
        return {id for id, there in zip(ids, found.tolist(), strict=True) if not there or id in self._without}


def write_lost(backend: Backend, identity: Identity, wid: bytes, roots: frozenset[bytes]) -> None:
    """Note down the roots of incomplete trees, in place of what earlier repairs noted."""
    before = [key for key, _ in backend.list(DAMAGE) if parse_damage(key) is not None]
    ordered = sorted(roots)
    for first in range(0, len(ordered), MAX_ROOTS):
        data = _HEAD + b"".join(ordered[first : first + MAX_ROOTS])
        key = damage_key(new_writer_id() if first else wid)
        backend.put(key, identity.cipher.seal(key, data + identity.checksum(data)))
    for key in before:
        backend.delete(key)


def read_lost(backend: Backend, identity: Identity) -> frozenset[bytes]:
    """The roots of trees that lack something. A note that is damaged is an error: what it names must not be built on.

    Raises `StoreDamagedError`.
    """
    roots: set[bytes] = set()
    for key, found in _read_all(backend, identity):
        if isinstance(found, str):
            raise StoreDamagedError(f"{backend.location}/{key} is damaged: {found}", "run mover repair")
        roots.update(found)
    return frozenset(roots)


def damaged(backend: Backend, identity: Identity) -> Iterator[tuple[str, str]]:
    """The notes that are not what was written, and why."""
    return ((key, found) for key, found in _read_all(backend, identity) if isinstance(found, str))


def _read_all(backend: Backend, identity: Identity) -> Iterator[tuple[str, list[bytes] | str]]:
    """Every note: the roots in it, or what is wrong with it."""
    for key, size in backend.list(DAMAGE):
        if parse_damage(key) is None:
            continue
        if size > _MAX_LENGTH:
            yield key, f"it has {size} bytes"
            continue
        try:
            data = identity.cipher.open(key, backend.get(key, 0, size))
        except ObjectMissingError:
            continue
        except BadSealError as error:
            yield key, str(error)
            continue
        body, check = data[:-ID_LENGTH], data[-ID_LENGTH:]
        whole = body[: len(_HEAD)] == _HEAD and len(body) % ID_LENGTH == len(_HEAD)
        if whole and identity.checksum(body) == check:
            yield key, split_ids(body[len(_HEAD) :])
        else:
            yield key, "it is not what was written"
