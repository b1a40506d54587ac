"""Copying restore points: what the other store lacks is read, checked, and stored under that store's own keys.

Ids of two stores have nothing to do with each other, so what is the same is found by the trees: a point is read where
it differs from the newest state of its disks that was copied before, and all of it if there is none. What was stored by
a copy that was interrupted is found again by the other store's index.

A copy of which that store has lost a part does not count. Copied anew it comes out as the same tree, so that the point
that is there is whole again; no second one is made of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from mover.errors import StoreDamagedError
from mover.events import DiskFinished, DiskPlanned, DiskProgress, Emit, Outcome, VmFinished, VmStarted
from mover.pipeline.intake import Counts, Intake
from mover.source import Take
from mover.source.stored import StoredSource
from mover.store import CopiedFrom, Point, PointDisk, PointRecord, Store, Writer
from protocol.arena import Arena
from protocol.block import Block
from protocol.extent import Extent, align, total
from protocol.tasks import in_thread

_IN_MEMORY = 48 << 20
_SLOT = 2 << 20


@dataclass(frozen=True)
class Copied:
    """One point: its id in the store it came from, and in the one it went to."""

    source: str
    target: str
    vm: str


@dataclass(frozen=True)
class CopyResult:
    """`copied` anew, `present` already (ids in the store they are from), `failed` with the reason, by id."""

    copied: tuple[Copied, ...]
    present: tuple[str, ...]
    failed: dict[str, str]


class _TargetDamaged(Exception):
    """Carries `damage` of the store that is written to past whoever reads the other one."""

    def __init__(self, damage: StoreDamagedError) -> None:
        super().__init__(str(damage))
        self.damage = damage


@contextmanager
def _from(source: Store) -> Iterator[None]:
    """Damage found here is that of the store that is read."""
    try:
        yield
    except _TargetDamaged as carrier:
        raise carrier.damage from carrier
    except StoreDamagedError as error:
        raise StoreDamagedError(f"the store copied from, {source.location}: {error}", error.hint) from error


@contextmanager
def _to(target: Store) -> Iterator[None]:
    """Damage found here is that of the store that is written to."""
    try:
        yield
    except StoreDamagedError as error:
        hint = f"`mover repair {target.location}`, then copy again: what is lost there is copied anew"
        raise StoreDamagedError(f"the store copied to, {target.location}: {error}", hint) from error


async def copy_points(source: Store, target: Store, points: Sequence[Point], emit: Emit) -> CopyResult:
    """Copy `points` of `source` that `target` has not, oldest first.

    A point of which either store has damaged what it takes does not stop the others; the reason says which store it
    is. Raises what `target` raises otherwise.
    """
    copied: list[Copied] = []
    present: list[str] = []
    failed: dict[str, str] = {}
    slot = max(_SLOT, source.chunk_size, target.chunk_size)
    threads = max(os.cpu_count() or 2, source.readers)
    with target.writer() as writer, ThreadPoolExecutor(threads, "copy") as executor:
        there, broken = await in_thread(executor, _copies, source, target)
        originals = {one.id: one.record for one in await in_thread(executor, lambda: source.readable_points()[0])}
        lost = await in_thread(executor, lambda: {*source.lost_roots(), *target.lost_roots()})
        arena = Arena(_IN_MEMORY // slot, slot)
        work = _Copy(source, target, writer, executor, arena, emit, originals, there, broken, lost)
        for point in sorted(points, key=lambda one: one.place):
            if point.id in there:
                present.append(point.id)
                continue
            started = time.monotonic()
            emit(VmStarted(vm=point.record.vm_uuid, name=point.record.vm_name, strategy=point.record.strategy))
            outcome: Outcome = "interrupted"
            made: str | None = None
            try:
                made = await _copy(work, point)
                copied.append(Copied(point.id, made, point.record.vm_name))
                outcome = "done"
            except StoreDamagedError as error:
                failed[point.id] = str(error)
                outcome = "failed"
            finally:
                emit(
                    VmFinished(
                        vm=point.record.vm_uuid,
                        name=point.record.vm_name,
                        outcome=outcome,
                        point=made,
                        seconds=time.monotonic() - started,
                        error=failed.get(point.id),
                    )
                )
    return CopyResult(tuple(copied), tuple(present), failed)


@dataclass(frozen=True)
class _Copy:
    """What the points of one copy share. `there` are the copies by the ids of their `originals`.

    `broken` are those that lack something, likewise, and `lost` the roots of disks of which either store has lost a
    part.
    """

    source: Store
    target: Store
    writer: Writer
    executor: Executor
    arena: Arena
    emit: Emit
    originals: dict[str, PointRecord]
    there: dict[str, PointRecord]
    broken: dict[str, Point]
    lost: set[bytes]


def _copies(source: Store, target: Store) -> tuple[dict[str, PointRecord], dict[str, Point]]:
    """The copies that `target` has of points of `source`, by the ids of the originals: whole ones, and others."""
    found: dict[str, PointRecord] = {}
    broken: dict[str, Point] = {}
    copies = [(point, of) for point in target.readable_points()[0] if (of := point.record.copied_from) is not None]
    ours = [(point, of.point) for point, of in copies if of.store == source.config.store_id]
    lacking = {point.name for point in target.lacking([point for point, _ in ours])}
    for point, original in ours:
        if point.name in lacking:
            broken[original] = point
        else:
            found[original] = point.record
    return found, broken


async def _copy(work: _Copy, point: Point) -> str:
    record = point.record
    metadata = b""
    if record.metadata:
        with _from(work.source):
            blob = await in_thread(work.executor, work.source.get_blob, record.metadata)
        with _to(work.target):
            metadata = await in_thread(work.executor, work.writer.put_blob, blob)
    disks = [await _copy_disk(work, point, disk, _base(work, disk)) for disk in record.disks]
    of = CopiedFrom(store=work.source.config.store_id, point=point.id)
    copy = msgspec.structs.replace(record, metadata=metadata, disks=disks, copied_from=of)
    with _to(work.target):
        made = await in_thread(work.executor, _commit, work, copy, work.broken.get(point.id))
    work.there[point.id] = copy
    # All of it has just been stored, whatever was lost of it before.
    work.lost.difference_update(disk.root for disk in disks)
    return made


def _commit(work: _Copy, copy: PointRecord, broken: Point | None) -> str:
    """Make a point of it, unless it is what a point has that was `broken`: that is whole once all is durable."""
    if broken is None or _content(broken.record) != _content(copy):
        return work.writer.commit(copy)
    work.writer.flush()
    # Who commits is told if a prune has shut this run out, and taken what it wrote; so is who has nothing to commit.
    work.writer.renew()
    return broken.id


def _content(point: PointRecord) -> tuple[bytes, list[bytes]]:
    return point.metadata, [disk.root for disk in point.disks]


@dataclass(frozen=True)
class _Base:
    """A state of a disk that both stores have: as `original` in the one, as `copy` in the other."""

    original: PointDisk
    copy: PointDisk


def _base(work: _Copy, disk: PointDisk) -> _Base | None:
    """The newest state of the disk that was copied and is still in both stores, whole."""
    for id, copy in sorted(work.there.items(), key=lambda pair: pair[1].order or pair[1].created, reverse=True):
        if id not in work.originals:
            continue
        ours = _disk_in(work.originals[id], disk.vdi_uuid)
        theirs = _disk_in(copy, disk.vdi_uuid)
        if ours is not None and theirs is not None and work.lost.isdisjoint((ours.root, theirs.root)):
            return _Base(ours, theirs)
    return None


def _disk_in(point: PointRecord, vdi: str) -> PointDisk | None:
    return next((disk for disk in point.disks if disk.vdi_uuid == vdi), None)


async def _copy_disk(work: _Copy, point: Point, disk: PointDisk, base: _Base | None) -> PointDisk:
    started = time.monotonic()
    reader = work.source.disk(disk.root, disk.size)

    def differing() -> list[Extent]:
        found = reader.extents() if base is None else reader.diff(base.original.root, base.original.size)
        return align(found, work.target.chunk_size, disk.size)

    with _from(work.source):
        extents = await in_thread(work.executor, differing)
    tree = work.writer.tree(disk.size, base=base.copy.root if base else None, base_size=base.copy.size if base else 0)

    def report(counts: Counts) -> None:
        work.emit(
            DiskProgress(
                vm=point.record.vm_uuid,
                disk=disk.position,
                done=counts.done,
                read=counts.done,
                zero=counts.zero,
                known=counts.known,
                new=counts.new,
                stored=counts.stored,
            )
        )

    work.emit(
        DiskPlanned(
            vm=point.record.vm_uuid,
            disk=disk.position,
            name=disk.name,
            size=disk.size,
            mode="copy",
            to_read=total(extents),
            reason=None if base else "no earlier state of this disk is there, whole",
        )
    )
    intake = Intake(work.writer, tree, extents, disk.size, work.target.chunk_size, work.executor, report)

    def take(blocks: Sequence[Block]) -> None:
        try:
            with _to(work.target):
                intake.take.here(blocks)
        except StoreDamagedError as error:
            raise _TargetDamaged(error) from error

    with _from(work.source):
        read = await StoredSource(reader, work.executor).deliver(extents, work.arena, Take(work.executor, take))
    with _to(work.target):
        root = await in_thread(work.executor, intake.finish)
    counts = intake.counts
    report(counts)
    work.emit(
        DiskFinished(
            vm=point.record.vm_uuid,
            disk=disk.position,
            name=disk.name,
            mode="copy",
            size=disk.size,
            changed=tree.changed,
            read=read,
            zero=counts.zero,
            known=counts.known,
            new=counts.new,
            stored=counts.stored,
            seconds=time.monotonic() - started,
        )
    )
    # How the backup read it stays what it was; what it took to store is the copy's own.
    return msgspec.structs.replace(disk, root=root, stored=counts.stored)
