"""What restore points need: a mark for each entry of the index, whatever the number of points and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from mover.store import segment as segments
from mover.store.identity import ZERO_ID
from mover.store.index import IndexView, Loaded, split_ids
from mover.store.names import PackName
from mover.store.pack import ENTRY_LENGTH
from mover.store.page import root_level
from mover.store.pages import PageCache, count_chunks
from mover.store.point import Point
from mover.store.record import HEADER_LENGTH
from mover.store.scrub import Entry
from mover.store.segment import I64, U64

# Pages read and looked up together: 16384 ids.
_BATCH = 128


class Reach:
    """Marks what points need. Of several places of a record one is marked, in a pack that is not condemned if possible.

    `lost` are the ids of records that points need and no usable pack holds.
    """

    def __init__(self, view: IndexView, cache: PageCache, chunk_size: int) -> None:
        self.view = view
        self.points = 0
        self.lost: list[bytes] = []
        self._marks = [np.zeros(len(loaded.segment), np.bool_) for loaded in view.segments]
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
            marks = self._marks[number]
            _, once = np.unique(rows, return_index=True)
            fresh.append(which[once][~marks[rows[once]]])
            marks[rows] = True
        self.lost += split_ids(np.ascontiguousarray(keys[~found]).tobytes())
        new = np.concatenate(fresh) if fresh else np.empty(0, np.int64)
        return np.ascontiguousarray(keys[np.sort(new)])

    @property
    def records(self) -> int:
        """How many records the points need."""
        return sum(int(marks.sum()) for marks in self._marks)

    def live_bytes(self) -> dict[PackName, int]:
        """For each pack that the index lists, the bytes of its records that are needed, with what frames each."""
        live: dict[PackName, int] = {}
        for loaded, marks in zip(self.view.segments, self._marks, strict=True):
            rows = loaded.segment.rows[marks]
            lengths = rows["length"].astype(np.int64) + HEADER_LENGTH + ENTRY_LENGTH
            sums = np.bincount(rows["pack"], weights=lengths, minlength=len(loaded.segment.packs))
            for pack, length in zip(loaded.segment.packs, sums.tolist(), strict=False):
                live[pack.name] = live.get(pack.name, 0) + int(length)
        return live

    def needed_in(self, packs: Iterable[PackName]) -> Iterator[tuple[PackName, list[Entry]]]:
        """The marked records of those `packs`, pack by pack."""
        wanted = frozenset(packs)
        for loaded, marks in zip(self.view.segments, self._marks, strict=True):
            chosen = np.array([pack.name in wanted for pack in loaded.segment.packs], np.bool_)
            if not chosen.any():
                continue
            rows = np.flatnonzero(marks)
            rows = rows[chosen.take(loaded.segment.rows["pack"][rows], mode="clip")]
            yield from by_pack(loaded, rows)


def by_pack(loaded: Loaded, rows: npt.NDArray[np.int64]) -> Iterator[tuple[PackName, list[Entry]]]:
    """The entries in `rows` of a segment, pack by pack."""
    packs = loaded.segment.rows["pack"][rows]
    order = np.argsort(packs, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(packs[order])) + 1):
        if len(group):
            yield loaded.segment.packs[int(packs[group[0]])].name, entries_of(loaded, rows[group])


def entries_of(loaded: Loaded, rows: npt.NDArray[np.int64]) -> list[Entry]:
    """What a segment says about the records in `rows`."""
    ids = split_ids(loaded.segment.ids(rows).tobytes())
    columns = loaded.segment.rows[["offset", "length", "meta"]][rows].tolist()
    return [Entry(offset, length, meta, id) for id, (offset, length, meta) in zip(ids, columns, strict=True)]
