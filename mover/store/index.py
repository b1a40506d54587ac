"""Where the records are: all index segments of a store, searched together."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mover.errors import StoreDamagedError
from mover.store import segment as segments
from mover.store.at_once import at_once
from mover.store.backend import Backend, Mapping, ObjectMissingError
from mover.store.cipher import BadSealError
from mover.store.condemned import read_condemned
from mover.store.identity import ID_LENGTH, Identity
from mover.store.names import INDEX, PACKS, PackName, SegmentName, parse_segment
from mover.store.segment import I64, U32, U64, BadSegmentError, PackEntry, Segment

# A merge that replaces segments while they are being opened makes one start over; each time it has made progress.
_TRIES = 20
_AT_ONCE = 5
# A fault maps up to 1 MiB around it (seen on Linux 6.18 with ext4), and a lookup faults once in the first column. Rows
# far from each other are not mapped to be looked at; those that are near each other are, now and then.
_LOOKUPS_PER_RELEASE = 64
_LOOKUPS_PER_RELEASE_OF_ROWS = 4096
# Of many more, those near each other are looked up together: so many at once, in so many bytes of large segments.
_TOGETHER = 16 << 10
_REACH = 32 << 20
# First columns up to this size in all stay mapped: those of 24 million records.
_DENSE = 192 << 20
# Segments of up to this size in all are left mapped.
_LARGE = 32 << 20


class Location(NamedTuple):
    """A record: its pack, where its header starts, the payload's length in bytes, and raw length, kind and codec."""

    pack: PackName
    offset: int
    length: int
    meta: int


@dataclass(frozen=True)
class Loaded:
    """A segment in use.

    `usable` says for each of its packs whether it is there with the length it should have, `kept` whether it is usable
    and no prune has condemned it; None: all are.
    """

    name: SegmentName
    segment: Segment
    data: memoryview
    usable: npt.NDArray[np.bool_] | None
    kept: npt.NDArray[np.bool_] | None = None


class _Pages:
    """Keeps the resident part of mapped segments small: random lookups would have all of them in the end.

    Pages that are given back stay in the page cache; touching them again costs a minor fault. The first column is
    dense, 8 bytes an id, and touched by every lookup: it goes last.
    """

    def __init__(self) -> None:
        self._touched = 0

    def touch(self, lookups: int, large: Sequence[Loaded], dense: bool) -> None:
        """So many ids are going to be looked up. Threads may lose counts here, which does no harm."""
        self._touched += lookups
        if self._touched < (_LOOKUPS_PER_RELEASE_OF_ROWS if dense else _LOOKUPS_PER_RELEASE):
            return
        self._touched = 0
        for one in large:
            segments.release_pages(one.data, segments.HEADER_LENGTH + one.segment.prefix.nbytes if dense else 0)


@dataclass(frozen=True)
class IndexView:
    """The index at one moment. Never changes; any thread may search it."""

    segments: tuple[Loaded, ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()
    condemned: frozenset[PackName] = frozenset()
    _pages: _Pages = field(default_factory=lambda: _Pages())

    def contains(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether its record is stored in a pack that is as long as it should be, and will stay."""
        known = [False] * len(ids)
        for _, found, _ in self.find(segments.keys_of(b"".join(ids)), kept=True):
            for at in found.tolist():
                known[at] = True
        return known

    def locate(self, ids: Sequence[bytes]) -> list[Location | None]:
        """Where each id's record is; None for those that are not stored."""
        places: list[Location | None] = [None] * len(ids)
        for number, found, rows in self.find(segments.keys_of(b"".join(ids))):
            segment = self.segments[number].segment
            entries = segment.at(rows)[["pack", "offset", "length", "meta"]].tolist()
            for at, (pack, offset, length, meta) in zip(found.tolist(), entries, strict=True):
                places[at] = Location(segment.packs[pack].name, offset, length, meta)
        return places

    def find(self, keys: U64, *, kept: bool = False) -> Iterator[tuple[int, I64, I64]]:
        """Segment by segment that has some of `keys`: its number, which of them, and their rows in it.

        With `kept` only in packs that no prune has condemned, otherwise in all, those preferred.
        """
        parts = self._parts(len(keys))
        if parts == 1:
            self._pages.touch(len(keys), self._large, self._dense)
            yield from self._find(keys, kept=kept)
            return
        for part in _by_neighbourhood(keys, parts):
            for number, found, rows in self._find(keys[part], kept=kept):
                yield number, part[found], rows
            for one in self._large:
                # What was touched is behind us, the first column too.
                segments.release_pages(one.data)

    def _parts(self, lookups: int) -> int:
        """Into how many parts of all possible ids to divide so many lookups, so that each touches little memory."""
        if self._dense and lookups * segments.FAR < self._large_bytes:
            return 1
        reach = self._large_bytes // _REACH + 1
        return max(min(max(reach, lookups // _TOGETHER), lookups // _LOOKUPS_PER_RELEASE), 1)

    def _find(self, keys: U64, *, kept: bool) -> Iterator[tuple[int, I64, I64]]:
        left: I64 | None = None  # all
        for only_kept in (True,) if kept or not self.condemned else (True, False):
            for number, loaded in enumerate(self.segments):
                some = keys if left is None else keys[left]
                at, rows = _rows_in(loaded.segment, some, loaded.kept if only_kept else loaded.usable)
                if len(at):
                    yield number, at if left is None else left[at], rows
                    if len(at) == len(some):
                        return
                    left = np.delete(np.arange(len(keys)) if left is None else left, at)

    def whereabouts(self, id: bytes) -> PackName | None:
        """The pack that should hold a record which `find` does not find, if any segment knows."""
        for loaded in self.segments:
            _, _, packs = loaded.segment.find(segments.keys_of(id))
            if len(packs) and (number := int(packs[0])) < len(loaded.segment.packs):
                return loaded.segment.packs[number].name
        return None

    def packs_with(self, ids: Collection[bytes]) -> set[PackName]:
        """Every pack that some segment lists one of these records in."""
        found: set[PackName] = set()
        keys = segments.keys_of(b"".join(ids))[:, 0]
        for segment in (loaded.segment for loaded in self.segments):
            # By the first eight bytes: that may name a pack too many, and leaves none out.
            first = np.searchsorted(segment.prefix, keys)
            last = np.searchsorted(segment.prefix, keys, side="right")
            for start, end in zip(first.tolist(), last.tolist(), strict=True):
                packs = segment.rows["pack"][start:end].tolist()
                found.update(segment.packs[pack].name for pack in packs if pack < len(segment.packs))
        return found

    def loaded(self, name: SegmentName, segment: Segment, data: memoryview) -> Loaded:
        """A segment that is to be added. Its packs are as good as they are in the segments it replaces."""
        replaced = [loaded for loaded in self.segments if loaded.name in segment.replaces]
        unusable = {pack for one in replaced for pack in _packs_without(one.segment, one.usable)}
        passing = {pack for one in replaced for pack in _packs_without(one.segment, one.kept)}
        usable = _mask([pack not in unusable for pack in segment.packs])
        return Loaded(name, segment, data, usable, _mask([pack not in passing for pack in segment.packs]))

    def adding(self, loaded: Loaded) -> IndexView:
        """This view and one more segment; those it replaces are gone from it."""
        replaced = {loaded.name, *loaded.segment.replaces}
        kept = [other for other in self.segments if other.name not in replaced]
        return IndexView(_largest_first([*kept, loaded]), self.damaged, self.condemned)

    @cached_property
    def _large(self) -> Sequence[Loaded]:
        """All segments, if together they are too large to be left mapped."""
        return self.segments if sum(len(one.data) for one in self.segments) > _LARGE else ()

    @cached_property
    def _large_bytes(self) -> int:
        return sum(len(one.data) for one in self._large)

    @cached_property
    def _dense(self) -> bool:
        """Whether the first columns may stay mapped."""
        return sum(one.segment.prefix.nbytes for one in self._large) <= _DENSE

    @property
    def records(self) -> int:
        """How many records it lists."""
        return sum(len(loaded.segment) for loaded in self.segments)


def _by_neighbourhood(keys: U64, parts: int) -> Iterator[I64]:
    """The positions of `keys` by value, in so many parts of all that is possible; those of equal keys are together."""
    order: I64 = np.argsort(keys[:, 0], kind="stable")
    edges = np.arange(1, parts, dtype=np.uint64) * np.uint64(2**64 // parts)
    for part in np.split(order, np.searchsorted(keys[order, 0], edges)):
        if len(part):
            yield part


def _largest_first(loaded: Sequence[Loaded]) -> tuple[Loaded, ...]:
    return tuple(sorted(loaded, key=lambda one: len(one.segment), reverse=True))


@dataclass
class Index:
    """The current view, shared by the readers and writers of one opened store."""

    backend: Backend
    identity: Identity
    mapping: Mapping
    _view: IndexView | None = None
    _lock: Lock = field(default_factory=Lock)

    @property
    def view(self) -> IndexView:
        """The view last loaded, or added to."""
        return self._view or self.reload()

    def reload(self) -> IndexView:
        """Look at the store anew, and use what is there now."""
        with self._lock:
            self._view = load(self.backend, self.identity, self.mapping)
            return self._view

    def add(self, name: SegmentName) -> None:
        """Use a segment that was just published. Its packs are as usable as they are in those it replaces.

        Raises `StoreDamagedError`, and what the store raises.
        """
        try:
            data = self.mapping.map(name.key)
            segment = segments.parse(self.identity, data)
        except ObjectMissingError:
            # Somebody has merged it already.
            self.reload()
            return
        except (BadSealError, BadSegmentError) as error:
            raise StoreDamagedError(
                f"{self.backend.location}/{name.key} is damaged: {error}", "it was just written: run mover verify"
            ) from error
        with self._lock:
            view = self._view or load(self.backend, self.identity, self.mapping)
            present = {one.name for one in view.segments}
            if name in present:
                return  # whoever looked at the store anew meanwhile has found it, and knows which packs are fit for use
            if present.issuperset(segment.replaces):
                self._view = view.adding(view.loaded(name, segment, data))
            else:
                # Without those it replaces nothing here says which of its packs are.
                self._view = load(self.backend, self.identity, self.mapping)


def load(backend: Backend, identity: Identity, mapping: Mapping) -> IndexView:
    """Open all segments."""
    for tries in range(_TRIES):
        if tries > _AT_ONCE:
            # Where lists lag behind, only time helps.
            time.sleep(min(0.05 * 2 ** (tries - _AT_ONCE), 2.0))
        try:
            return _open_all(backend, identity, mapping)
        except ObjectMissingError:
            continue
    raise StoreDamagedError(f"the index of {backend.location} keeps changing", "try again")


def _open_all(backend: Backend, identity: Identity, mapping: Mapping) -> IndexView:
    # This order, condemned packs before the index and that before the packs, is what makes deleting safe.
    condemned, damaged = read_condemned(backend, identity)
    opened: dict[SegmentName, tuple[Segment, memoryview]] = {}
    names = [name for key, _ in backend.list(INDEX) if (name := parse_segment(key)) is not None]
    for name, data in zip(names, at_once(backend.tuning, lambda name: _map(mapping, name), names), strict=True):
        try:
            if isinstance(data, BadSealError):
                raise data
            opened[name] = (segments.parse(identity, data), data)
        except (BadSealError, BadSegmentError) as error:
            damaged.append((name.key, str(error)))
    replaced = {name for segment, _ in opened.values() for name in segment.replaces}
    sizes = dict(backend.list(PACKS)) if opened else {}
    gone = frozenset(pack for packs in condemned.values() for pack in packs)
    loaded = []
    for name, (segment, data) in opened.items():
        if name not in replaced:
            usable = [sizes.get(pack.name.key) == pack.size for pack in segment.packs]
            kept = [good and pack.name not in gone for good, pack in zip(usable, segment.packs, strict=True)]
            loaded.append(Loaded(name, segment, data, _mask(usable), _mask(kept)))
    return IndexView(_largest_first(loaded), tuple(damaged), gone)


def _map(mapping: Mapping, name: SegmentName) -> memoryview | BadSealError:
    try:
        return mapping.map(name.key)
    except BadSealError as error:
        return error


def _mask(good: Sequence[bool]) -> npt.NDArray[np.bool_] | None:
    return None if all(good) else np.array(good, np.bool_)


def _packs_without(segment: Segment, good: npt.NDArray[np.bool_] | None) -> Iterator[PackEntry]:
    if good is not None:
        yield from (pack for pack, fine in zip(segment.packs, good.tolist(), strict=True) if not fine)


def _rows_in(segment: Segment, keys: U64, good: npt.NDArray[np.bool_] | None) -> tuple[I64, I64]:
    """Which of `keys` are in a `good` pack, and their rows. An id may be listed several times in a row."""
    at, rows, packs = segment.find(keys)
    fine = _in_good(segment, packs, good)
    if fine.all():
        return at, rows
    rows = rows.copy()
    hits = np.flatnonzero(~fine)
    while len(hits):
        following = np.minimum(rows[hits] + 1, len(segment.prefix) - 1)
        same = (rows[hits] < following) & (segment.prefix[following] == keys[at[hits], 0])
        same &= (segment.rows["rest"][following] == keys[at[hits], 1:]).all(axis=1)
        rows[hits] = np.where(same, following, -1)
        hits = hits[same]
        hits = hits[~_in_good(segment, segment.rows["pack"][rows[hits]], good)]
    return at[rows >= 0], rows[rows >= 0]


def _in_good(segment: Segment, packs: U32, good: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    known = packs < len(segment.packs)
    if good is None:
        return known
    return known & good.take(packs, mode="clip") if len(good) else np.zeros(len(packs), np.bool_)


def split_ids(ids: bytes) -> list[bytes]:
    """Ids joined together, one by one."""
    return [ids[at : at + ID_LENGTH] for at in range(0, len(ids), ID_LENGTH)]
