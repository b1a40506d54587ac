"""Checking a store: what restore points need, or everything there is, and who suffers from damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mover.errors import StoreDamagedError, StoreIoError
from mover.store import segment as segments
from mover.store.at_once import at_once
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import ZERO_ID, Identity
from mover.store.index import IndexView, split_ids
from mover.store.marks import Marks, by_pack, entries_of
from mover.store.names import PACKS, PackName, parse_pack
from mover.store.pack import BadPackError
from mover.store.page import root_level
from mover.store.pages import PageCache, count_chunks
from mover.store.point import Point
from mover.store.scrub import Entry, PackReport, Scrub

# Of what is lost, this many pieces are told apart; who has more does not read on.
_MOST = 1000


@dataclass(frozen=True)
class Damage:
    """An object of the store, what is wrong with it, the ids of the restore points that suffer, and their disks.

    Of `disks` each is a point's id and the position of a disk of it.
    """

    object: str
    reason: str
    points: tuple[str, ...]
    disks: tuple[tuple[str, str], ...] = ()


# A point's id, and the position of a disk of it; "" for its metadata.
_Sufferer = tuple[str, str]


def _damage(name: str, reason: str, hit: set[_Sufferer]) -> Damage:
    points = {point for point, _ in hit}
    return Damage(name, reason, tuple(sorted(points)), tuple(sorted(pair for pair in hit if pair[1])))


@dataclass
class Verification:
    """One check of a store. With `limit` it takes points until they need this share of all bytes; see `included`."""

    backend: Backend
    identity: Identity
    view: IndexView
    cache: PageCache
    chunk_size: int
    deep: bool
    reload: Callable[[], IndexView]
    progress: Callable[[int, int], None] | None
    limit: float | None = None
    included: list[Point] = field(default_factory=list)
    _marks: list[Marks] = field(default_factory=list)
    _lost: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    _vanished: set[bytes] = field(default_factory=set)
    _suffering: dict[bytes, set[_Sufferer]] = field(default_factory=dict)
    # The segments of which prefixes or rows are damaged.
    _astray: list[int] = field(default_factory=list)
    _done: int = 0

    def run(self, wanted: Sequence[Point], all_points: Sequence[Point], *, everything: bool) -> Iterator[Damage]:
        """Check what `wanted` needs, or `everything`, and yield what is damaged, with those of `all_points` it hits."""
        self._marks = [Marks(loaded) for loaded in self.view.segments]
        if everything:
            for key, reason in self.view.damaged:
                yield Damage(key, f"{reason}; what it lists is stored again when it is seen again", ())
            self._astray = [
                number
                for number, loaded in enumerate(self.view.segments)
                if not segments.columns_intact(self.identity, loaded.data)
            ]
        enough = None if self.limit is None else self.limit * sum(self._expected().values())
        for point in wanted:
            self._mark(point)
            self.included.append(point)
            if enough is not None and self._marked_bytes() >= enough:
                break
        reports = self._still_so([report for report in self._scrub(everything) if report.bad or report.reason])
        bad = {id for report in reports for id in report.bad}
        misplaced = {number: self._misplaced(number) for number in self._astray}
        told = bad.union(*misplaced.values())
        lacking = told.union(self._lost)
        self._suffering = _Suffering(self.cache, self.chunk_size, lacking).of(all_points) if lacking else {}
        for number, ids in misplaced.items():
            key = self.view.segments[number].name.key
            yield _damage(key, "its checksum does not match; it can be made anew from the packs", self._hit(ids))
        for report in reports:
            yield _damage(report.name.key, str(report), self._hit(report.bad))
        yield from self._losses(told)

    def whole(self) -> list[Point]:
        """Those of the points taken that lack nothing, as far as the check has told; to be asked once it is over.

        None if rows of the index are damaged: they are not in order any more, so that a search may find what another
        one does not.
        """
        if self._astray:
            return []
        hit = {point for sufferers in self._suffering.values() for point, _ in sufferers}
        return [point for point in self.included if point.id not in hit]

    def _hit(self, ids: Iterable[bytes]) -> set[_Sufferer]:
        """Who needs any of these records."""
        return {sufferer for id in ids for sufferer in self._suffering.get(id, ())}

    def _still_so(self, reports: Sequence[PackReport]) -> list[PackReport]:
        """What is damaged yet. A prune may have deleted a pack meanwhile, and moved what is needed to another.

        Records that moved are checked where they are now. Those in no pack are damage only if a point needs them.
        """
        missing = [report for report in reports if report.missing]
        if not missing:
            return list(reports)
        now = self.reload()
        listed = {pack.name for loaded in now.segments for pack in loaded.segment.packs}
        settled = [report for report in reports if not report.missing or report.name in listed]
        scrub = Scrub(self.backend, self.identity, self.deep)
        for report in missing:
            if report.name in listed or not report.bad:
                continue
            ids = list(report.bad)
            moved: dict[bytes, None] = {}
            for number, which, rows in now.find(segments.keys_of(b"".join(ids))):
                moved.update(dict.fromkeys(ids[at] for at in which.tolist()))
                for name, entries in by_pack(now.segments[number], rows):
                    again = scrub.records(name, entries)
                    if again.bad or again.reason:
                        settled.append(again)
            for id in ids:
                if id not in moved:
                    self._lost[id] = (report.name.key, report.reason)
                    self._vanished.add(id)
        return settled

    def _losses(self, told: set[bytes]) -> Iterator[Damage]:
        """What is needed and found nowhere, by the object that should hold it; not what was `told` already."""
        by_object: dict[tuple[str, str], set[_Sufferer]] = {}
        for id, about in self._lost.items():
            if id not in told and (id not in self._vanished or self._suffering.get(id)):
                by_object.setdefault(about, set()).update(self._hit([id]))
        pieces = list(by_object.items())
        for (name, reason), hit in pieces[:_MOST]:
            yield _damage(name, reason, hit)
        if more := pieces[_MOST:]:
            # Who suffers is named to the last, as after every other damage.
            yield _damage(f"{len(more)} more objects", "they are lost, too", set().union(*(hit for _, hit in more)))

    def _why(self, id: bytes) -> tuple[str, str]:
        """The object that should hold a record, and why it does not."""
        pack = self.view.whereabouts(id)
        if pack is None:
            return f"record {id.hex()}", "no pack holds it, as far as the index knows"
        return pack.key, "it is missing, or has not the length it was published with"

    def _misplaced(self, number: int) -> set[bytes]:
        """The records that are needed, and that a segment with damaged rows has elsewhere than their pack does.

        Whole packs are checked by their footers, so nothing else would tell of them.
        """
        sizes = self._expected()
        scrub = Scrub(self.backend, self.identity, self.deep)

        def check(one: tuple[PackName, list[Entry]]) -> list[bytes]:
            name, entries = one
            try:
                table = set(scrub.table(name, sizes[name]))
            except (BadPackError, ObjectMissingError, StoreIoError):
                # Then its records were checked where the index has them.
                return []
            return [entry.id for entry in entries if entry not in table]

        return {id for ids in at_once(self.backend.tuning, check, self._marks[number].by_pack()) for id in ids}

    def _mark(self, point: Point) -> None:
        """Mark every record that a point needs; subtrees that are marked already are not entered again."""
        if point.record.metadata:
            self._reach([point.record.metadata])
        for disk in point.record.disks:
            if disk.root != ZERO_ID:
                self._mark_below(root_level(count_chunks(disk.size, self.chunk_size)), [disk.root])

    def _mark_below(self, level: int, pages: Sequence[bytes]) -> None:
        for id in self._reach(pages):
            try:
                children = [child for child in split_ids(self.cache.get(level, id)) if child != ZERO_ID]
            except StoreDamagedError as error:
                self._lost[id] = (f"record {id.hex()}", str(error))
                continue
            if level:
                self._mark_below(level - 1, children)
            else:
                self._reach(children)

    def _reach(self, ids: Sequence[bytes]) -> list[bytes]:
        """Mark `ids`; returns those that were not marked before. What is in no usable pack is lost."""
        fresh: list[bytes] = []
        found = np.zeros(len(ids), np.bool_)
        for number, which, rows in self.view.find(segments.keys_of(b"".join(ids))):
            found[which] = True
            fresh += [ids[at] for at in which[self._marks[number].add(rows)].tolist()]
        for at in np.flatnonzero(~found).tolist():
            self._lost[ids[at]] = self._why(ids[at])
        return fresh

    def _scrub(self, everything: bool) -> Iterator[PackReport]:
        scrub = Scrub(self.backend, self.identity, self.deep)
        sizes = dict(self.backend.list(PACKS))
        work = self._all_packs(sizes) if everything else self._marked()
        total = sum(sizes.values()) if everything else self._marked_bytes()

        expected = self._expected() if everything else {}

        def check(one: tuple[PackName, list[Entry]]) -> tuple[PackReport, int]:
            name, entries = one
            if everything:
                size = sizes.get(name.key, 0)
                report = scrub.pack(name, size, self._indexed)
                if size != expected.get(name, size) and not report.reason:
                    report.reason = f"it has {size} bytes, the index says {expected[name]}"
                return report, size
            return scrub.records(name, entries), sum(entry.length for entry in entries)

        threads = max(os.cpu_count() or 1, self.backend.tuning.requests)
        with ThreadPoolExecutor(threads, "mover-verify") as pool:
            while batch := [one for _, one in zip(range(2 * threads), work, strict=False)]:
                for report, checked in pool.map(check, batch):
                    self._done += checked
                    if self.progress is not None:
                        self.progress(self._done, total)
                    yield report

    def _all_packs(self, sizes: dict[str, int]) -> Iterator[tuple[PackName, list[Entry]]]:
        """Every pack there is, and every one there should be."""
        names = {name for key in sizes if (name := parse_pack(key)) is not None} | set(self._expected())
        for name in sorted(names):
            yield name, []

    def _expected(self) -> dict[PackName, int]:
        """The packs that the index knows, and their lengths."""
        return {pack.name: pack.size for loaded in self.view.segments for pack in loaded.segment.packs}

    def _indexed(self, name: PackName) -> list[Entry]:
        """The records of one pack as the index has them."""
        found: list[Entry] = []
        for loaded in self.view.segments:
            for number, pack in enumerate(loaded.segment.packs):
                if pack.name == name:
                    found += entries_of(loaded, np.flatnonzero(loaded.segment.rows["pack"] == number))
        return found

    def _marked(self) -> Iterator[tuple[PackName, list[Entry]]]:
        for marks in self._marks:
            yield from marks.by_pack()

    def _marked_bytes(self) -> int:
        return sum(int(marks.totals()[1].sum()) for marks in self._marks)


class _Suffering:
    """Which points need which damaged records. Only looked for once something is damaged."""

    def __init__(self, cache: PageCache, chunk_size: int, bad: set[bytes]) -> None:
        self._cache = cache
        self._chunk_size = chunk_size
        self._bad = bad
        self._below: dict[bytes, frozenset[bytes]] = {}

    def of(self, points: Sequence[Point]) -> dict[bytes, set[_Sufferer]]:
        """By damaged id, who needs it."""
        hit: dict[bytes, set[_Sufferer]] = {}
        for point in points:
            if point.record.metadata in self._bad:
                hit.setdefault(point.record.metadata, set()).add((point.id, ""))
            for disk in point.record.disks:
                if disk.root != ZERO_ID:
                    level = root_level(count_chunks(disk.size, self._chunk_size))
                    for id in self._needed(level, disk.root):
                        hit.setdefault(id, set()).add((point.id, disk.position))
        return hit

    def _needed(self, level: int, id: bytes) -> frozenset[bytes]:
        """The damaged records at and below a page."""
        if id not in self._below:
            found = {id} & self._bad
            try:
                children = set(split_ids(self._cache.get(level, id))) - {ZERO_ID}
            except StoreDamagedError:
                children = set()
            if level:
                for child in children:
                    found |= self._needed(level - 1, child)
            else:
                found |= children & self._bad
            self._below[id] = frozenset(found)
        return self._below[id]
