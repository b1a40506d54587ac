"""Giving back the space of what no restore point needs, while backups run.

A prune first condemns packs, in an object that everybody looks at before the index. Then it waits for the writers that
may not have seen it, and shuts out those that are silent. Only then does it look at all points again, copies what they
need out of the condemned packs, and deletes these. A writer takes its lease before it looks for condemned packs, a
prune condemns before it looks for leases: one of them sees the other. Clocks only decide when to give a writer up, and
that costs the writer a retry, never data.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

from mover.errors import StoreDamagedError
from mover.store import pack
from mover.store import segment as segments
from mover.store.at_once import at_once
from mover.store.backend import Backend, ObjectMissingError
from mover.store.condemned import MAX_PACKS, encode_condemned, read_condemned, refuse_damaged_condemnations
from mover.store.config import Config
from mover.store.copying import Copier
from mover.store.identity import Identity
from mover.store.index import Index, IndexView
from mover.store.lease import read_leases, remove_lease
from mover.store.merge import rewrite
from mover.store.names import (
    LEASES,
    PACKS,
    PackName,
    SegmentName,
    condemned_key,
    new_writer_id,
    parse_lease,
    parse_pack,
    parse_point,
)
from mover.store.pages import PageCache
from mover.store.partial import stale as stale_notes
from mover.store.point import Point
from mover.store.probe import refuse_overwriting
from mover.store.probe import stale as stale_probes
from mover.store.reach import Reach
from mover.store.roots import list_forgotten, read_roots
from mover.store.stamps import remove_stamps
from mover.store.waiting import Patience, Progress, settle, shut_out_the_silent, wait_for_writers

# Another prune may move records while this one copies them; each time it has made progress.
_TRIES = 5
_PACK_FRAME = pack.HEADER_LENGTH + pack.TRAILER_LENGTH


@dataclass(frozen=True)
class PruneReport:
    """What a prune did, or without doing it would do. `freed` and `copied` are bytes, `damaged` packs left alone."""

    points: int
    records: int
    packs: int
    deleted: int
    repacked: int
    freed: int
    copied: int
    fenced: int
    damaged: tuple[str, ...] = ()


def one_after_the_other(first: PruneReport, second: PruneReport) -> PruneReport:
    """What two prunes did together."""
    return replace(
        second,
        packs=first.packs,
        deleted=first.deleted + second.deleted,
        repacked=first.repacked + second.repacked,
        freed=first.freed + second.freed,
        copied=first.copied + second.copied,
        fenced=first.fenced + second.fenced,
    )


@dataclass
class _Plan:
    """Packs to be deleted and their sizes, and how many bytes in them are needed."""

    points: int
    records: int
    packs: int
    doomed: dict[PackName, int] = field(default_factory=dict)
    live: dict[PackName, int] = field(default_factory=dict)


class Prune:
    """One prune. It is itself a writer of packs and segments, under the id that its condemnation has."""

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        config: Config,
        index: Index,
        cache: PageCache,
        min_live: float,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self.wid = new_writer_id()
        # Whether an interrupted prune was finished: what that one had copied may be in the way yet.
        self.finished_another = False
        self._backend = backend
        self._identity = identity
        self._config = config
        self._index = index
        self._cache = cache
        self._min_live = min_live
        self._patience = patience
        self._progress = progress
        self._forgotten: frozenset[str] = frozenset()
        self._segments = count()
        self._intact: set[SegmentName] = set()
        self._fenced = 0
        self._copied = 0
        self._damaged: dict[PackName, str] = {}

    def plan(self, without: Sequence[Point]) -> PruneReport:
        """What it would do after `without` were forgotten."""
        self._forgotten = list_forgotten(self._backend) | {point.name.key for point in without}
        plan = self._choose()
        return self._report(plan, sum(plan.live.get(name, 0) for name in plan.doomed))

    def run(self) -> PruneReport:
        """Do it all; see `Store.prune`."""
        # What is in the trash now is given up; what gets there later may be the base of a backup that nobody waits for.
        self._forgotten = list_forgotten(self._backend)
        # What a killed run has left belongs to nobody only once it is shut out.
        self._fenced += shut_out_the_silent(self._backend, self._patience, self._progress)
        plan = self._choose()
        if plan.doomed:
            self._condemn(plan)
            try:
                settle(self._patience, self._progress)
                self._wait_for_writers()
                settle(self._patience, self._progress)
                self._rescue(plan)
            except BaseException:
                # Nothing of ours is deleted, nor will be.
                with suppress(Exception):
                    self._backend.delete(condemned_key(self.wid))
                raise
        elif self._forgotten:
            self._wait_for_writers()
        self._delete(plan)
        return self._report(plan, self._copied)

    def _choose(self) -> _Plan:
        """Find the packs that nobody needs, or of which so little is needed that copying that is worth it."""
        # Packs before leases before the index: whoever wrote a pack and holds no lease has listed it, or never will.
        sizes = self._packs()
        leases = read_leases(self._backend)
        condemned, _ = read_condemned(self._backend, self._identity)
        reach = self._reach()
        records, live = reach.weigh()
        busy = leases.keys() | condemned.keys()
        interrupted = frozenset(name for packs in condemned.values() for name in packs)
        plan = _Plan(reach.points, records, len(sizes), live=live)
        for name, size in sizes.items():
            wasteful = live.get(name, 0) + _PACK_FRAME < self._min_live * size or not live.get(name)
            if name in interrupted or (wasteful and name.wid not in busy):
                plan.doomed[name] = size
            if len(plan.doomed) == MAX_PACKS:
                # More than one object can condemn: the next prune goes on.
                break
        return plan

    def _condemn(self, plan: _Plan) -> None:
        """From now on nobody who begins to write counts on these packs."""
        # The store may have been moved to another server since it was made.
        refuse_overwriting(self._backend)
        key = condemned_key(self.wid)
        self._backend.put(key, self._identity.cipher.seal(key, encode_condemned(self._identity, plan.doomed)))

    def _wait_for_writers(self) -> None:
        """Until all who write now, and may not know what is condemned, have finished or are shut out."""
        self._fenced += wait_for_writers(self._backend, self._patience, self._progress)

    def _rescue(self, plan: _Plan) -> None:
        """Copy what is needed out of the condemned packs, our own and others', until nothing is needed there."""
        first_seq = 0
        for _ in range(_TRIES):
            reach = self._reach()
            copier = Copier(
                self._backend, self._identity, self.wid, self._config.pack_target, self._segments, first_seq, deep=False
            )
            try:
                moving = reach.needed_in(reach.view.condemned | plan.doomed.keys())
                copier.copy(moving)
                copier.finish()
            except ObjectMissingError:
                first_seq = copier.packs
                continue
            finally:
                copier.close()
                self._copied += copier.bytes
            self._damaged |= copier.damaged
            # Another pack may have a good copy of what is damaged; which one, a repair finds out.
            for name in copier.damaged.keys() | reach.view.packs_with(copier.damaged_ids):
                plan.doomed.pop(name, None)
            return
        raise StoreDamagedError(f"other prunes of {self._backend.location} get in the way", "prune again later")

    def _delete(self, plan: _Plan) -> None:
        """Take packs off the index, delete them, and only then say that they are condemned no longer."""
        self._drop_from_index(plan.doomed)
        keys = [name.key for name in plan.doomed]
        for done, _ in enumerate(at_once(self._backend.tuning, self._backend.delete, keys)):
            self._progress("deleting packs", done, len(keys))
        # A writer may have merged what it knew of before into a new segment.
        self._drop_from_index(plan.doomed)
        # Stamps first: one that is left without its point says that the point was lost.
        remove_stamps(self._backend, [name for key in self._forgotten if (name := parse_point(key)) is not None])
        for key in self._forgotten:
            self._backend.delete(key)
        self._backend.delete(condemned_key(self.wid))
        self._clear_up()

    def _drop_from_index(self, doomed: Mapping[PackName, int]) -> None:
        for _ in range(_TRIES):
            view = self._index.reload()
            present = self._packs()

            listed = {entry.name for loaded in view.segments for entry in loaded.segment.packs}
            # What a list does not show may be too new for it.
            gone = {name for name in listed if name in doomed or (name not in present and self._is_missing(name))}
            stale = [loaded for loaded in view.segments if any(one.name in gone for one in loaded.segment.packs)]
            if not stale:
                return
            rewrite(self._backend, self._identity, stale, gone.__contains__, self.wid, next(self._segments))
            for loaded in stale:
                self._backend.delete(loaded.name.key)

    def _is_missing(self, name: PackName) -> bool:
        try:
            self._backend.get(name.key, 0, 1)
        except ObjectMissingError:
            return True
        return False

    def _clear_up(self) -> None:
        """Remove the condemnations of prunes whose packs are all gone, and renewals of leases that are gone."""
        condemned, _ = read_condemned(self._backend, self._identity)
        present = self._packs()
        for prune, packs in condemned.items():
            if packs.isdisjoint(present):
                self._backend.delete(condemned_key(prune))
                self.finished_another = True
        for note in stale_notes(self._backend, time.time()):
            self._backend.delete(note.key)
        for key in list(stale_probes(self._backend, time.time())):
            self._backend.delete(key)
        renewals = [parse_lease(key) for key, _ in self._backend.list(LEASES)]
        holders = read_leases(self._backend)
        for name in renewals:
            if name is not None and name[0] not in holders and name[1] is not None:
                remove_lease(self._backend, name[0], [name[1]])

    def _packs(self) -> dict[PackName, int]:
        names = ((parse_pack(key), size) for key, size in self._backend.list(PACKS))
        return {name: size for name, size in names if name is not None}

    def _reach(self) -> Reach:
        """What all points need, by the index as it is now. Raises `StoreDamagedError` if that is not all there."""
        for tries_left in reversed(range(_TRIES)):
            # Points before the index: what a point needs is listed before it exists.
            roots = self._roots()
            reach = Reach(self._index.reload(), self._cache, self._config.chunk_size)
            self._refuse_damage(reach.view)
            try:
                for done, (point, in_trash) in enumerate(sorted(roots, key=_in_trash)):
                    self._progress("looking at restore points", done, len(roots))
                    self._mark(reach, point, in_trash=in_trash)
                return reach
            except StoreDamagedError:
                # Another prune may have moved it since, or a point is forgotten and gone.
                if not tries_left:
                    raise
        raise AssertionError

    def _mark(self, reach: Reach, point: Point, *, in_trash: bool) -> None:
        """Mark what a point needs. One in the trash may have lost it: to a prune that began after it was forgotten.

        That prune has seen to it that nobody who could build on the point is writing any more.
        """
        try:
            reach.mark(point)
        except StoreDamagedError:
            if not in_trash:
                raise
        if reach.lost and not in_trash:
            raise StoreDamagedError(
                f"{self._backend.location} lacks {reach.lost} records that the restore point {point.id} needs, "
                f"the first {reach.first_lost.hex()}; nothing is deleted",
                "`mover verify` names all points that suffer; remove them, or bring back what is missing from a copy",
            )

    def _roots(self) -> Sequence[tuple[Point, bool]]:
        return read_roots(self._backend, self._identity, self._forgotten)

    def _refuse_damage(self, view: IndexView) -> None:
        """What the index says is what things are deleted by: it has to be right."""
        refuse_damaged_condemnations(self._backend.location, view.damaged)
        damaged = [key for key, _ in view.damaged]
        for loaded in view.segments:
            if loaded.name not in self._intact and not segments.columns_intact(self._identity, loaded.data):
                damaged.append(loaded.name.key)
            self._intact.add(loaded.name)
        if damaged:
            raise StoreDamagedError(
                f"{self._backend.location}/{damaged[0]} is damaged; nothing is deleted",
                "bring it back from a copy of the store",
            )

    def _report(self, plan: _Plan, copied: int) -> PruneReport:
        repacked = [name for name in plan.doomed if plan.live.get(name)]
        return PruneReport(
            points=plan.points,
            records=plan.records,
            packs=plan.packs,
            deleted=len(plan.doomed),
            repacked=len(repacked),
            freed=sum(plan.doomed.values()),
            copied=copied,
            fenced=self._fenced,
            damaged=tuple(f"{name.key}: {reason}" for name, reason in sorted(self._damaged.items())),
        )


def _in_trash(root: tuple[Point, bool]) -> bool:
    return root[1]
