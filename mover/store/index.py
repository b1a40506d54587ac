"""Where the records are: all index segments of a store, searched together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mover.errors import StoreDamagedError
from mover.store import segment as segments
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import ID_LENGTH, Identity
from mover.store.names import INDEX, PACKS, PackName, SegmentName, parse_segment
from mover.store.segment import I64, U64, BadSegmentError, Segment

# A merge that replaces segments while they are being opened makes one start over; each time it has made progress.
_TRIES = 20
# A fault maps up to 1 MiB around it (seen on Linux 6.18 with ext4), and a lookup faults once or twice.
_LOOKUPS_PER_RELEASE = 64
# First columns up to this size in all stay mapped: those of 24 million records.
_DENSE = 192 << 20
# Segments up to this size are left mapped.
_LARGE = 32 << 20


class Location(NamedTuple):
    """A record: its pack, where its header starts, the payload's length in bytes, and raw length, kind and codec."""

    pack: PackName
    offset: int
    length: int
    meta: int


@dataclass(frozen=True)
class Loaded:
    """A segment in use. `usable` says for each of its packs whether it is there with the length it should have."""

    name: SegmentName
    segment: Segment
    data: memoryview
    usable: npt.NDArray[np.bool_] | None


class _Pages:
    """Keeps the resident part of mapped segments small: random lookups would have all of them in the end.

    Pages that are given back stay in the page cache; touching them again costs a minor fault. The first column is
    dense, 8 bytes an id, and touched by every lookup: it goes last.
    """

    def __init__(self) -> None:
        self._touched = 0

    def touch(self, lookups: int, loaded: Sequence[Loaded]) -> None:
        """So many ids are going to be looked up. Threads may lose counts here, which does no harm."""
        self._touched += lookups
        if self._touched < _LOOKUPS_PER_RELEASE:
            return
        self._touched = 0
        large = [one for one in loaded if len(one.data) > _LARGE]
        dense = sum(one.segment.prefix.nbytes for one in large) <= _DENSE
        for one in large:
            segments.release_pages(one.data, segments.HEADER_LENGTH + one.segment.prefix.nbytes if dense else 0)


@dataclass(frozen=True)
class IndexView:
    """The index at one moment. Never changes; any thread may search it."""

    segments: tuple[Loaded, ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()
    _pages: _Pages = field(default_factory=lambda: _Pages())

    def contains(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether its record is stored in a pack that is as long as it should be."""
        known = np.zeros(len(ids), np.bool_)
        for _, found, _ in self.find(ids):
            known[found] = True
        return known.tolist()

    def locate(self, ids: Sequence[bytes]) -> list[Location | None]:
        """Where each id's record is; None for those that are not stored."""
        places: list[Location | None] = [None] * len(ids)
        for number, found, rows in self.find(ids):
            segment = self.segments[number].segment
            entries = segment.rows[["pack", "offset", "length", "meta"]][rows].tolist()
            for at, (pack, offset, length, meta) in zip(found.tolist(), entries, strict=True):
                places[at] = Location(segment.packs[pack].name, offset, length, meta)
        return places

    def find(self, ids: Sequence[bytes]) -> Iterator[tuple[int, I64, I64]]:
        """Segment by segment that has some of `ids`: its number, which of them, and their rows in it."""
        self._pages.touch(len(ids), self.segments)
        keys = segments.keys_of(b"".join(ids))
        left: I64 = np.arange(len(keys), dtype=np.int64)
        for number, loaded in enumerate(self.segments):
            if not len(left):
                return
            rows = self._usable_rows(loaded, keys[left])
            hit = rows >= 0
            if hit.any():
                yield number, left[hit], rows[hit]
                left = left[~hit]

    def _usable_rows(self, loaded: Loaded, keys: U64) -> I64:
        rows = loaded.segment.find(keys)
        hits = np.flatnonzero(rows >= 0)
        if len(hits):
            packs = loaded.segment.rows["pack"][rows[hits]]
            known = packs < len(loaded.segment.packs)
            if loaded.usable is not None:
                known &= loaded.usable.take(packs, mode="clip") if len(loaded.usable) else False
            rows[hits[~known]] = -1
        return rows

    def whereabouts(self, id: bytes) -> PackName | None:
        """The pack that should hold a record which `find` does not find, if any segment knows."""
        for loaded in self.segments:
            (row,) = loaded.segment.find(segments.keys_of(id)).tolist()
            if row >= 0 and (number := int(loaded.segment.rows["pack"][row])) < len(loaded.segment.packs):
                return loaded.segment.packs[number].name
        return None

    def usable(self, segment: Segment) -> npt.NDArray[np.bool_] | None:
        """Which packs of a segment that is to be added are usable: all but those known not to be."""
        unusable = {
            pack
            for loaded in self.segments
            if loaded.usable is not None and loaded.name in segment.replaces
            for pack, usable in zip(loaded.segment.packs, loaded.usable.tolist(), strict=True)
            if not usable
        }
        return np.array([pack not in unusable for pack in segment.packs], np.bool_) if unusable else None

    def adding(self, loaded: Loaded) -> IndexView:
        """This view and one more segment; those it replaces are gone from it."""
        replaced = {loaded.name, *loaded.segment.replaces}
        kept = [other for other in self.segments if other.name not in replaced]
        return IndexView(_largest_first([*kept, loaded]), self.damaged)

    @property
    def records(self) -> int:
        """How many records it lists."""
        return sum(len(loaded.segment) for loaded in self.segments)


def _largest_first(loaded: Sequence[Loaded]) -> tuple[Loaded, ...]:
    return tuple(sorted(loaded, key=lambda one: len(one.segment), reverse=True))


@dataclass
class Index:
    """The current view, shared by the readers and writers of one opened store."""

    backend: Backend
    identity: Identity
    _view: IndexView | None = None
    _lock: Lock = field(default_factory=Lock)

    @property
    def view(self) -> IndexView:
        """The view last loaded, or added to."""
        return self._view or self.reload()

    def reload(self) -> IndexView:
        """Look at the store anew, and use what is there now."""
        with self._lock:
            self._view = load(self.backend, self.identity)
            return self._view

    def add(self, name: SegmentName) -> None:
        """Use a segment that was just published. Its packs are as usable as they are in those it replaces."""
        data = self.backend.map(name.key)
        segment = segments.parse(self.identity, data)
        with self._lock:
            view = self._view or load(self.backend, self.identity)
            self._view = view.adding(Loaded(name, segment, data, view.usable(segment)))


def load(backend: Backend, identity: Identity) -> IndexView:
    """Open all segments."""
    for _ in range(_TRIES):
        try:
            return _open_all(backend, identity)
        except ObjectMissingError:
            continue
    raise StoreDamagedError(f"the index of {backend.location} keeps changing", "try again")


def _open_all(backend: Backend, identity: Identity) -> IndexView:
    opened: dict[SegmentName, tuple[Segment, memoryview]] = {}
    damaged: list[tuple[str, str]] = []
    for key, _ in backend.list(INDEX):
        name = parse_segment(key)
        if name is None:
            continue
        data = backend.map(key)
        try:
            opened[name] = (segments.parse(identity, data), data)
        except BadSegmentError as error:
            damaged.append((key, str(error)))
    replaced = {name for segment, _ in opened.values() for name in segment.replaces}
    sizes = dict(backend.list(PACKS)) if opened else {}
    loaded = [
        Loaded(name, segment, data, _usable(segment, sizes))
        for name, (segment, data) in opened.items()
        if name not in replaced
    ]
    return IndexView(_largest_first(loaded), tuple(damaged))


def _usable(segment: Segment, sizes: dict[str, int]) -> npt.NDArray[np.bool_] | None:
    """Which packs have the length they were published with; None if all have."""
    usable = [sizes.get(pack.name.key) == pack.size for pack in segment.packs]
    return None if all(usable) else np.array(usable, np.bool_)


def split_ids(ids: bytes) -> list[bytes]:
    """Ids joined together, one by one."""
    return [ids[at : at + ID_LENGTH] for at in range(0, len(ids), ID_LENGTH)]
