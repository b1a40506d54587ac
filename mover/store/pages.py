"""The pages of one disk's tree as stored: by level and number, a few kept for the next look."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from threading import Lock
from typing import Protocol

from mover.errors import StoreDamagedError
from mover.store import page
from mover.store.identity import ID_LENGTH, ZERO_ID
from mover.store.index import split_ids
from mover.store.page import FANOUT, BadPageError
from mover.store.record import PAGE
from mover.store.records import Records

# Of 4 KiB each.
_KEPT = 512
# So many are read at once where that is near: a lookup costs little more for them than for one.
_BESIDE = 16
NO_IDS = bytes(FANOUT * ID_LENGTH)


class Pages(Protocol):
    """Where a tree gets its pages from."""

    def get(self, level: int, id: bytes) -> bytes:
        """The 128 ids of a page, joined together."""
        ...

    def get_beside(self, level: int, siblings: bytes, position: int) -> bytes:
        """A page that is read one after another with those beside it: one of 128 `siblings`, by its position."""
        ...


class PageCache:
    """Decoded pages by id, the least recently used ones forgotten. Any thread may use it."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._kept: OrderedDict[tuple[int, bytes], bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, level: int, id: bytes) -> bytes:
        """The 128 ids of a page, joined together. The zero id is a page of zeros. Raises `StoreDamagedError`."""
        return self.get_many(level, [id])[0]

    def get_beside(self, level: int, siblings: bytes, position: int) -> bytes:
        """The page at a position among 128, whose ids are joined in `siblings`; others may be read along with it.

        Who reads pages one after another then looks them up, and waits for a store that is far away, once for many.
        Where it is near, only those that follow are read, and only if the page before was.
        """
        id = _id_at(siblings, position)
        with self._lock:
            at_hand = id == ZERO_ID or (level, id) in self._kept
            one_after_another = position > 0 and (level, _id_at(siblings, position - 1)) in self._kept
        if not at_hand and (self._records.far or one_after_another):
            along = siblings if self._records.far else siblings[position * ID_LENGTH :][: _BESIDE * ID_LENGTH]
            # One of the others may be damaged, which is not our business.
            with suppress(StoreDamagedError):
                self.get_many(level, [sibling for sibling in split_ids(along) if sibling != ZERO_ID])
        return self.get(level, id)

    def get_many(self, level: int, ids: Sequence[bytes]) -> list[bytes]:
        """Several pages of one level, those not at hand read together."""
        found: dict[bytes, bytes] = {ZERO_ID: NO_IDS}
        with self._lock:
            for id in ids:
                if (kept := self._kept.get((level, id))) is not None:
                    self._kept.move_to_end((level, id))
                    found[id] = kept
        missing = [id for id in dict.fromkeys(ids) if id not in found]
        if not missing:
            return [found[id] for id in ids]
        for id, data in zip(missing, self._records.get_many(missing, PAGE), strict=True):
            try:
                found[id] = page.decode(level, data)
            except BadPageError as error:
                raise StoreDamagedError(f"the page {id.hex()} is damaged: {error}") from error
        with self._lock:
            for id in missing:
                self._kept[level, id] = found[id]
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return [found[id] for id in ids]


class GuardedPages:
    """The pages of `cache`, each read within a `guard`."""

    def __init__(self, cache: PageCache, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._cache = cache
        self._guard = guard

    def get(self, level: int, id: bytes) -> bytes:
        """See `PageCache.get`."""
        with self._guard():
            return self._cache.get(level, id)

    def get_beside(self, level: int, siblings: bytes, position: int) -> bytes:
        """See `PageCache.get_beside`."""
        with self._guard():
            return self._cache.get_beside(level, siblings, position)


class StoredTree:
    """The tree `root` over `chunks` chunks, page by page. A page that lies outside of it is zeros."""

    def __init__(self, cache: Pages, root: bytes, chunks: int) -> None:
        self.root = root
        self.chunks = chunks
        self.root_level = page.root_level(chunks)
        self._cache = cache

    def id(self, level: int, number: int) -> bytes:
        """The id of page `number` of `level`, at most the root's level."""
        if level == self.root_level:
            return self.root if number == 0 else ZERO_ID
        return _id_at(self.ids(level + 1, number // FANOUT), number % FANOUT)

    def ids(self, level: int, number: int) -> bytes:
        """The 128 ids of page `number` of `level`; above the root, what a taller tree of this content would have."""
        if level <= self.root_level:
            if level or level == self.root_level:
                return self._cache.get(level, self.id(level, number))
            # Leaves beside each other lie together; pages further up have their leaves between them.
            return self._cache.get_beside(level, self.ids(level + 1, number // FANOUT), number % FANOUT)
        if level == self.root_level + 1 and number == 0:
            return self.root + NO_IDS[ID_LENGTH:]
        # Pages further up do not exist; the writer of a taller tree makes them from the one above the root.
        return NO_IDS


def _id_at(ids: bytes, position: int) -> bytes:
    return ids[position * ID_LENGTH : (position + 1) * ID_LENGTH]


def count_chunks(size: int, chunk_size: int) -> int:
    """How many chunks a disk of `size` bytes has."""
    return -(-size // chunk_size)
