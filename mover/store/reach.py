"""What restore points need: a mark for each entry of the index, whatever the number of points and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mover.store import segment as segments
from mover.store.identity import ZERO_ID
from mover.store.index import IndexView, split_ids
from mover.store.marks import Marks
from mover.store.names import PackName
from mover.store.pack import ENTRY_LENGTH
from mover.store.page import root_level
from mover.store.pages import PageCache, count_chunks
from mover.store.point import Point
from mover.store.record import HEADER_LENGTH
from mover.store.scrub import Entry
from mover.store.segment import I64, U64

# Pages read and looked up together: 131,072 ids. The more there are, the less often all of the index comes by.
_BATCH = 1024


class Reach:
    """Marks what points need. Of several places of a record one is marked, in a pack that is not condemned if possible.

    `lost` is the number of records that points need and no usable pack holds, `first_lost` the id of one.
    """

    def __init__(self, view: IndexView, cache: PageCache, chunk_size: int) -> None:
        self.view = view
        self.points = 0
        self.lost = 0
        self.first_lost = b""
        self._marks = [Marks(loaded) for loaded in view.segments]
        self._cache = cache
        self._chunk_size = chunk_size

    def mark(self, point: Point) -> None:
        """Mark every record that a point needs; subtrees that are marked already are not entered again."""
        self.points += 1
        if point.record.metadata:
            self._reach(segments.keys_of(point.record.metadata))
        for disk in point.record.disks:
            if disk.root != ZERO_ID:
                level = root_level(count_chunks(disk.size, self._chunk_size))
                self._enter(level, self._reach(segments.keys_of(disk.root)))

    def _enter(self, level: int, pages: U64) -> None:
        """Mark what is below `pages`."""
        for first in range(0, len(pages), _BATCH):
            ids = split_ids(pages[first : first + _BATCH].tobytes())
            below = segments.keys_of(b"".join(self._cache.get_many(level, ids)))
            fresh = self._reach(below[below.any(axis=1)])
            if level:
                self._enter(level - 1, fresh)

    def _reach(self, keys: U64) -> U64:
        """Mark records; returns the keys of those that were not marked before."""
        fresh: list[I64] = []
        found = np.zeros(len(keys), np.bool_)
        for number, which, rows in self.view.find(keys):
            found[which] = True
            fresh.append(which[self._marks[number].add(rows)])
        missing = np.flatnonzero(~found)
        if len(missing) and not self.lost:
            self.first_lost = keys[missing[0]].tobytes()
        self.lost += len(missing)
        new = np.concatenate(fresh) if fresh else np.empty(0, np.int64)
        return np.ascontiguousarray(keys[np.sort(new)])

    def weigh(self) -> tuple[int, dict[PackName, int]]:
        """How many records are needed, and for each pack of the index the bytes of them, with what frames each."""
        records = 0
        live: dict[PackName, int] = {}
        for loaded, marks in zip(self.view.segments, self._marks, strict=True):
            counts, lengths = marks.totals()
            records += int(counts.sum())
            sums = lengths + counts * (HEADER_LENGTH + ENTRY_LENGTH)
            for pack, length in zip(loaded.segment.packs, sums.tolist(), strict=True):
                live[pack.name] = live.get(pack.name, 0) + length
        return records, live

    def needed_in(self, packs: Iterable[PackName]) -> Iterator[tuple[PackName, list[Entry]]]:
        """The marked records of those `packs`, pack by pack."""
        wanted = frozenset(packs)
        for loaded, marks in zip(self.view.segments, self._marks, strict=True):
            chosen = np.array([pack.name in wanted for pack in loaded.segment.packs], np.bool_)
            if chosen.any():
                yield from marks.by_pack(chosen)
