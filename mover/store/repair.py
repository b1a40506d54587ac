"""Mending a store: the index made anew from packs, good records saved from damaged packs, and what is lost for good.

Whoever repairs is a writer with a lease, so that a prune that begins now waits; packs that a prune has condemned, or
that belong to writers with leases, are left alone, and so is what cannot be read just now. Everything is durable in its
new place before it is removed from the old one, so an interrupted repair has lost nothing, and is begun anew.

Backups may run meanwhile. What is lost is taken off the index, and points that lack it are noted, before a repair waits
for those that may be counting on it; then it looks at what they have committed. Who begins later knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from mover.errors import StoreIoError
from mover.store import pack, record
from mover.store import segment as segments
from mover.store.backend import Backend, ObjectMissingError
from mover.store.condemned import refuse_damaged_condemnations
from mover.store.config import Config
from mover.store.copying import Copier
from mover.store.identity import Identity
from mover.store.index import Index, IndexView, Loaded
from mover.store.lease import Lease, is_repair, read_leases
from mover.store.lost import LostParts, write_lost
from mover.store.marks import entries_of
from mover.store.merge import rewrite
from mover.store.names import INDEX, PACKS, PackName, SegmentName, new_writer_id, parse_pack
from mover.store.pack import BadPackError
from mover.store.pages import PageCache
from mover.store.point import Point
from mover.store.publish import publish
from mover.store.record import HEADER_LENGTH, MAX_STORED, BadRecordError
from mover.store.scrub import Entry, PackReport, Scrub
from mover.store.segment import PackEntry
from mover.store.waiting import Patience, Progress, settle, wait_for_writers
from protocol.extent import Extent, total

# Records listed by one segment of those made anew.
_PER_SEGMENT = 128 << 10


@dataclass(frozen=True)
class Loss:
    """What of a disk of a restore point is gone, in bytes; `extents` are (offset, length). Without a disk: metadata."""

    point: str
    vm: str
    position: str
    disk: str
    lost: int
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RepairReport:
    """What was done, or would be: `listed` packs are in the index again, `emptied` packs were damaged.

    `saved` and `dropped` are records of those: moved, and gone. `helpless` are objects that are left as they are.
    """

    listed: int
    segments: int
    emptied: int
    saved: int
    dropped: int
    losses: tuple[Loss, ...]
    helpless: tuple[tuple[str, str], ...]


@dataclass
class Repair:
    """One repair, under `lease`. `points` reads the restore points that there are now."""

    backend: Backend
    identity: Identity
    config: Config
    index: Index
    cache: PageCache
    lease: Lease
    deep: bool
    patience: Patience
    told: Progress
    points: Callable[[], Sequence[Point]]
    _segments: Iterator[int] = field(default_factory=count)
    _bad: set[bytes] = field(default_factory=set)

    def run(self, helpless: Sequence[tuple[str, str]], *, dry: bool) -> RepairReport:
        """Mend what can be mended; with `dry` only say what would be done.

        Raises `FencedError` if a prune has given this repair up, and what the store raises.
        """
        view = self.index.reload()
        refuse_damaged_condemnations(self.backend.location, view.damaged)
        broken = [loaded for loaded in view.segments if not segments.columns_intact(self.identity, loaded.data)]
        intact = [loaded for loaded in view.segments if loaded not in broken]
        stale = [key for key, _ in view.damaged if key.startswith(INDEX)] + [loaded.name.key for loaded in broken]
        sizes = self._packs(view)
        reports = list(self._scrub(sizes, intact))
        unread = [report for report in reports if report.unread]
        spoilt = [report for report in reports if (report.bad or report.reason) and not report.unread]
        unlisted = self._unlisted(sizes, intact, {report.name for report in (*spoilt, *unread)})
        self._bad = {id for report in spoilt for id in report.bad}
        saved = 0
        if dry:
            losses = self._losses(self.points(), view, without=frozenset(self._bad))
        else:
            self._list_anew(unlisted, sizes)
            saved = self._save(spoilt, sizes, intact)
            gone = {report.name for report in spoilt} | self._missing(intact, sizes)
            # What only a damaged segment knows of packs that cannot be read now may be of use yet.
            self._take_off([] if unread else stale, gone)
            losses = self._let_go(gone)
        waiting = [(report.name.key, f"{report.unread}: repair again once it can be read") for report in unread]
        return RepairReport(
            listed=len(unlisted),
            segments=len(stale),
            emptied=len(spoilt),
            saved=saved,
            dropped=len(self._bad),
            losses=tuple(losses),
            helpless=(*helpless, *waiting),
        )

    def _progress(self, doing: str, done: int, total: int) -> None:
        """Tell of the progress, and renew the lease."""
        self.lease.renew_if_due()
        self.told(doing, done, total)

    def _let_go(self, gone: set[PackName]) -> list[Loss]:
        """Note what is lost, wait for those who may count on packs that are `gone`, and delete these."""
        seen = self.points()
        losses = self._losses(seen, self.index.reload())
        self._note(seen, losses)
        if not gone:
            return losses
        settle(self.patience, self._progress)
        # Two repairs would wait for each other; neither counts on what is stored already.
        repairs = {wid for wid in read_leases(self.backend) if is_repair(self.backend, wid)}
        wait_for_writers(self.backend, self.patience, self._progress, spare=repairs)
        settle(self.patience, self._progress)
        for name in sorted(gone):
            self.lease.renew()
            self.backend.delete(name.key)
        # A writer may have merged what it knew of before into a new segment.
        self._drop(gone)
        known = {point.id for point in seen}
        if late := [point for point in self.points() if point.id not in known]:
            losses += self._losses(late, self.index.reload())
            self._note([*seen, *late], losses)
        return losses

    def _note(self, seen: Sequence[Point], losses: Sequence[Loss]) -> None:
        """Write down which disks lack something, so that no backup builds on them."""
        lost = {(loss.point, loss.position) for loss in losses}
        roots = {d.root for p in seen for d in p.record.disks if (p.id, d.position) in lost}
        write_lost(self.backend, self.identity, new_writer_id(), frozenset(roots))

    def _packs(self, view: IndexView) -> dict[PackName, int]:
        """The packs that are nobody else's business: not condemned, and of no writer that has a lease."""
        names = ((parse_pack(key), size) for key, size in self.backend.list(PACKS))
        leased = read_leases(self.backend).keys() - {self.lease.wid}
        return {
            name: size
            for name, size in names
            if name is not None and name not in view.condemned and name.wid not in leased
        }

    def _scrub(self, sizes: dict[PackName, int], intact: Sequence[Loaded]) -> Iterator[PackReport]:
        scrub = Scrub(self.backend, self.identity, self.deep)
        work = sorted(sizes.items())
        with ThreadPoolExecutor(max(os.cpu_count() or 1, self.backend.tuning.requests), "mover-repair") as pool:
            found = pool.map(lambda one: scrub.pack(one[0], one[1], lambda name: _indexed(intact, name)), work)
            for done, report in enumerate(found, 1):
                self._progress("checking packs", done, len(work))
                yield report

    def _unlisted(self, sizes: dict[PackName, int], intact: Sequence[Loaded], spoilt: set[PackName]) -> list[PackName]:
        """Good packs that no segment that can be used lists with the length they have."""
        known = {(entry.name, entry.size) for loaded in intact for entry in loaded.segment.packs}
        return [name for name, size in sorted(sizes.items()) if (name, size) not in known and name not in spoilt]

    # -- the index -----------------------------------------------------------------------------------------------------

    def _list_anew(self, names: Sequence[PackName], sizes: dict[PackName, int]) -> None:
        scrub = Scrub(self.backend, self.identity, deep=False)
        packs: list[PackEntry] = []
        tables: list[bytes] = []
        for done, name in enumerate(names):
            self._progress("listing packs", done, len(names))
            packs.append(PackEntry(name, sizes[name]))
            tables.append(_table(scrub.table(name, sizes[name])))
            if sum(map(len, tables)) // pack.ENTRY_LENGTH >= _PER_SEGMENT:
                self._put_segment(packs, tables)
                packs, tables = [], []
        if packs:
            self._put_segment(packs, tables)

    def _put_segment(self, packs: Sequence[PackEntry], tables: Sequence[bytes]) -> None:
        publish(self.backend, self.identity, SegmentName(0, self.lease.wid, next(self._segments)), packs, tables)

    # -- damaged packs -------------------------------------------------------------------------------------------------

    def _save(self, spoilt: Sequence[PackReport], sizes: dict[PackName, int], intact: Sequence[Loaded]) -> int:
        """Copy the good records of damaged packs into new ones; how many."""
        if not spoilt:
            return 0
        copier = Copier(self.backend, self.identity, self.lease.wid, self.config.pack_target, self._segments, deep=True)
        try:
            for done, report in enumerate(spoilt):
                self._progress("saving records", done, len(spoilt))
                entries = self._entries(report.name, sizes[report.name], intact)
                try:
                    copier.copy([(report.name, [entry for entry in entries if entry.id not in report.bad])])
                except ObjectMissingError:
                    continue
            copier.finish()
            return copier.copied
        finally:
            copier.close()

    def _entries(self, name: PackName, size: int, intact: Sequence[Loaded]) -> Sequence[Entry]:
        """The records of a damaged pack: by its footer, else by the index, else by what their headers say."""
        try:
            return Scrub(self.backend, self.identity, deep=False).table(name, size)
        except (BadPackError, ObjectMissingError, StoreIoError):
            return _indexed(intact, name) or list(self._records_in(name, size))

    def _records_in(self, name: PackName, size: int) -> Iterator[Entry]:
        """The records from the pack's beginning up to the first one that is not whole."""
        at = pack.HEADER_LENGTH
        while at + HEADER_LENGTH <= size:
            try:
                length, meta, id = record.parse_header(self.backend.get(name.key, at, HEADER_LENGTH))
            except (BadRecordError, ObjectMissingError, StoreIoError):
                return
            if length > MAX_STORED or at + HEADER_LENGTH + length > size:
                return
            yield Entry(at, length, meta, id)
            at += HEADER_LENGTH + length

    def _missing(self, intact: Sequence[Loaded], sizes: dict[PackName, int]) -> set[PackName]:
        """Packs that are listed and not there. That a list does not show them is not enough."""
        listed = {entry.name for loaded in intact for entry in loaded.segment.packs}
        found: set[PackName] = set()
        unseen = sorted(listed - sizes.keys())
        for done, name in enumerate(unseen):
            self._progress("looking for packs", done, len(unseen))
            if self._is_missing(name):
                found.add(name)
        return found

    def _is_missing(self, name: PackName) -> bool:
        try:
            self.backend.get(name.key, 0, 1)
        except ObjectMissingError:
            return True
        return False

    def _take_off(self, stale: Sequence[str], gone: set[PackName]) -> None:
        """Remove segments that were made anew, and packs from the index that nobody shall count on any more.

        A prune that has given this repair up may have counted on what the copies were made from: it is asked each time.
        """
        for key in stale:
            self.lease.renew()
            self.backend.delete(key)
        if gone:
            self.lease.renew()
            self._drop(gone)

    def _drop(self, gone: set[PackName]) -> None:
        """Rewrite the segments that list packs which are `gone`."""
        view = self.index.reload()
        listing = [one for one in view.segments if any(entry.name in gone for entry in one.segment.packs)]
        if listing:
            rewrite(self.backend, self.identity, listing, gone.__contains__, self.lease.wid, next(self._segments))
            for loaded in listing:
                self.backend.delete(loaded.name.key)

    # -- what is lost --------------------------------------------------------------------------------------------------

    def _losses(
        self, points: Sequence[Point], view: IndexView, *, without: frozenset[bytes] = frozenset()
    ) -> list[Loss]:
        lost = LostParts(view, self.cache, self.config.chunk_size, without)
        found: list[Loss] = []
        for done, point in enumerate(points):
            self._progress("looking at restore points", done, len(points))
            about = point.record
            if about.metadata and not lost.has(about.metadata):
                found.append(Loss(point.id, about.vm_name, "", "metadata", 0, ()))
            for disk in about.disks:
                parts: list[Extent] = lost.of(disk.root, disk.size)
                if parts:
                    extents = tuple((part.offset, part.length) for part in parts)
                    found.append(Loss(point.id, about.vm_name, disk.position, disk.name, total(parts), extents))
        return found


def _indexed(intact: Sequence[Loaded], name: PackName) -> list[Entry]:
    """The records of one pack as segments have them."""
    found: list[Entry] = []
    for loaded in intact:
        for number, entry in enumerate(loaded.segment.packs):
            if entry.name == name:
                found += entries_of(loaded, np.flatnonzero(loaded.segment.rows["pack"] == number))
    return found


def _table(entries: Sequence[Entry]) -> bytes:
    return b"".join(pack.ENTRY.pack(entry.id, entry.offset, entry.length, entry.meta, 0) for entry in entries)
