"""One VM: snapshot, metadata, all disks, the commit, and what stays on the pool."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec

from mover.backup import cbt, metadata, snapshot, xva
from mover.backup.base import bases
from mover.backup.copy import LiveDisk
from mover.backup.drives import as_it_is_now
from mover.backup.guard import staying
from mover.backup.health import require_fit_storage
from mover.backup.hooks import around_snapshot
from mover.backup.memory import copy_memory
from mover.backup.records import read_records
from mover.backup.session import Session
from mover.errors import PoolError
from mover.events import Note
from mover.history import samples
from mover.job import SelectedVm
from mover.store import Point, PointRecord
from mover.units import format_duration
from mover.unusual import unusual
from protocol.errors import ProtocolError, TransferError, XapiError

# How long cleaning up on the pool may take once a backup has failed or was interrupted.
_CLEAN_UP_TIMEOUT = 60.0
# By so many seconds the clocks of machines that back up the same VMs may differ without a warning.
_SKEW = 60.0
_INTERRUPTED = "interrupted before old snapshots were removed: those left will be swept by the next run"

# Told the id of the restore point.
Committed = Callable[[str], Awaitable[None]]


async def back_up_vm(session: Session, vm: SelectedVm, committed: Committed, *, keep_base: bool) -> str:
    """Back up one VM and return the id of its restore point. Leaves no snapshot behind if it fails.

    `committed` is awaited once it is safe: what follows is waiting for the pool to let go of old snapshots.
    """
    # Nothing is done to a VM for a store that takes no more.
    session.writer.require_working()
    async with staying(session, vm):
        session, vm = await as_it_is_now(session, vm)
        return await _back_up(session, vm, committed, keep_base=keep_base)


async def _back_up(session: Session, vm: SelectedVm, committed: Committed, *, keep_base: bool) -> str:
    points = session.points.get(vm.uuid, [])
    left = await _left(session, vm, points)
    spared = {disk.uuid for disk in (*left.taken.disks, *filter(None, [left.taken.memory]))} if left else set()
    await snapshot.sweep(session.pool, session.owner, vm.uuid, bases(points) | spared, session.records)
    made: list[str] = []
    try:
        record, taken = await _snapshot_and_copy(session, vm, points, left, keep_base=keep_base)
        await session.in_thread(lambda: made.append(session.writer.commit(record)))
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            session.pool.hurry()
            for note in getattr(error, "__notes__", ()):
                _warn(session, vm, f"{note}: what it makes will be swept by the next run")
        if made:
            # Interrupted in the moment of the commit: its snapshot is the base of the next run.
            session.unfinished.end(vm.uuid)
            await committed(made[0])
            _warn(session, vm, _INTERRUPTED)
        else:
            await _clean_up(session, vm, points)
        raise
    (point,) = made
    session.unfinished.end(vm.uuid)
    await committed(point)
    await _settle(session, vm, taken, record)
    _tell_unusual(session, vm, points, record)
    return point


async def _left(session: Session, vm: SelectedVm, points: Sequence[Point]) -> cbt.Left | None:
    """What a killed run has left of the VM to go on with. Streams over HTTP cannot begin in the middle."""
    if vm.backup.strategy != "cbt":
        return None
    noted = session.unfinished.of(vm.uuid)
    return await cbt.left_to_go_on(session.pool, session.owner, noted, vm, points, session.lost)


async def _snapshot_and_copy(
    session: Session, vm: SelectedVm, points: Sequence[Point], left: cbt.Left | None, *, keep_base: bool
) -> tuple[PointRecord, snapshot.Snapshot]:
    by_cbt = vm.backup.strategy == "cbt"
    cbt_reasons = await cbt.enable_cbt(session, vm) if by_cbt else {}
    taken, started = (left.taken, left.noted.created) if left else await _take(session, vm)
    session.unfinished.begin(vm.uuid, taken.uuid, started)
    about = await _describe(session, vm, taken)
    if left and vm.backup.memory and taken.memory is None:
        _warn(session, vm, "the run that was killed has left no memory to go on with: it is not part of this backup")
    memory = await copy_memory(session, vm, taken)
    disks = _snapshotted(session, vm, taken)
    if by_cbt:
        done = await cbt.copy_disks(session, vm, disks, points, cbt_reasons, left and left.noted, keep_base=keep_base)
        ova_xml = None
    else:
        done, ova_xml = await xva.copy_vm(session, vm, taken, disks, points, keep_base=keep_base)
    return PointRecord(
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        created=started,
        order=_order(session, vm, points, started),
        job=session.job,
        run=session.run,
        schedule=session.schedule,
        strategy=vm.backup.strategy,
        snapshot_uuid=taken.uuid,
        metadata=await _put_metadata(session, vm, about, taken, ova_xml),
        disks=[*done, *memory],
    ), taken


async def _take(session: Session, vm: SelectedVm) -> tuple[snapshot.Snapshot, float]:
    """A new snapshot, and when it was taken (Unix time). Raises `UnfitStorageError`, `HookError`, `XapiError`."""
    await require_fit_storage(session, vm)
    async with around_snapshot(session, session.hooks, vm):
        taken, refused = await snapshot.take(
            session.pool,
            vm.ref,
            session.owner.snapshot_name(session.run),
            session.owner.tags(vm=vm.uuid, run=session.run),
            [disk.vdi for disk in vm.excluded_disks],
            quiesce=vm.backup.quiesce,
            memory=vm.backup.memory,
        )
    started = time.time()
    for why in refused:
        _warn(session, vm, f"{why}: took a regular one")
    return taken, started


def _order(session: Session, vm: SelectedVm, points: Sequence[Point], started: float) -> float | None:
    """Where the new point stands if this machine's clock says that it is older than the one before; else None.

    What is the newest decides what is restored, what is kept, and where the next incremental starts: no clock may.
    """
    last = points[-1].place[0] if points else started
    if started > last or not points:
        return None
    if last - started > _SKEW:
        when = f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M:%S} UTC"
        message = f"this machine's clock is {format_duration(last - started)} behind the last restore point of {when}"
        _warn(session, vm, f"{message}: it was wrong then, or is now. The new point comes after that one all the same")
    return math.nextafter(last, math.inf)


def _tell_unusual(session: Session, vm: SelectedVm, points: Sequence[Point], record: PointRecord) -> None:
    """Warn if so much changed, or so little compressed, as never: it may not be this VM's owner who wrote that."""
    made = samples([*((point.id, point.record) for point in points), ("", record)])
    for words in unusual(made[:-1], made[-1]):
        _warn(session, vm, words)


def _warn(session: Session, vm: SelectedVm, message: str, disk: str | None = None) -> None:
    session.emit(Note(level="warning", vm=vm.uuid, disk=disk, message=message))


async def _describe(session: Session, vm: SelectedVm, taken: snapshot.Snapshot) -> metadata.VmMetadata:
    about = await metadata.collect(session.pool, vm.ref)
    about = msgspec.structs.replace(about, suspended=await metadata.suspended(session.pool, taken))
    if about.vtpms.keys() - about.vtpm_contents.keys():
        _warn(session, vm, "the TPM's contents are for the pool's root user only and are not in this backup")
    return about


async def _put_metadata(
    session: Session,
    vm: SelectedVm,
    about: metadata.VmMetadata,
    taken: snapshot.Snapshot,
    ova_xml: bytes | None,
) -> bytes:
    """Store what was gathered, with the pool's own form of it: that of the export, or else asked for."""
    why = "it is too large"
    if ova_xml is None:
        try:
            ova_xml = await _export_ova_xml(session, vm, about, taken)
        except ProtocolError as error:
            # A restore uses the records; the pool's own form is kept where it can be had.
            why = str(error)
    complete = await session.in_thread(lambda: metadata.with_ova_xml(about, ova_xml))
    if complete is about:
        message = f"no ova.xml of the VM is in the backup ({why}); its records were saved"
        session.emit(Note(level="info", vm=vm.uuid, message=message))
    return await session.in_thread(lambda: session.writer.put_blob(metadata.encode(complete)))


async def _export_ova_xml(
    session: Session, vm: SelectedVm, about: metadata.VmMetadata, taken: snapshot.Snapshot
) -> bytes:
    """The snapshot's, or else that of the VM while it has the snapshot's disks. Raises `ProtocolError`."""
    try:
        return await metadata.export_ova_xml(session.transfers, taken.ref)
    except XapiError as error:
        # Before 24.13.0 a pool exports no metadata of a snapshot, but that of a VM in any power state.
        if error.code != "OPERATION_NOT_ALLOWED":
            raise
    ova_xml = await metadata.export_ova_xml(session.transfers, vm.ref)
    if await session.in_thread(lambda: metadata.has_disks_of(taken, about, ova_xml)):
        return ova_xml
    why = "the pool has none of snapshots, and the VM's disks are no longer those of its snapshot"
    raise TransferError("export of metadata", why)


def _snapshotted(session: Session, vm: SelectedVm, taken: snapshot.Snapshot) -> list[LiveDisk]:
    """The selected disks with their snapshots. Raises `PoolError` if one has none: a point without it is no backup."""
    disks: list[LiveDisk] = []
    for disk in vm.disks:
        of = taken.of(disk.vdi)
        if of is None:
            raise PoolError(
                f"{vm.name}, disk {disk.position} ({disk.name}): the VM's snapshot has none of this disk",
                "the VM lost or changed it in the moment of its snapshot: run the job again",
            )
        disks.append(LiveDisk(disk.position, disk.name, disk.vdi, disk.vdi_uuid, of))
    chosen = {disk.vdi for disk in (*vm.disks, *vm.excluded_disks)}
    for new in (disk for disk in taken.disks if disk.live not in chosen):
        message = f"the VM's snapshot has one of a disk that the VM had not when the disks were chosen ({new.uuid})"
        if not disks:
            raise PoolError(f"{vm.name}: {message}, and of no other", "run the job again")
        _warn(session, vm, f"{message}: that disk is not part of this backup")
    return disks


async def _settle(session: Session, vm: SelectedVm, taken: snapshot.Snapshot, record: PointRecord) -> None:
    """After the commit: keep the new base if one is wanted, remove what it replaces. Failing here loses nothing."""
    keep = {uuid for disk in record.disks if (uuid := disk.snapshot_uuid or disk.base_snapshot)}
    try:
        await snapshot.keep_only(session.pool, taken, keep, data=vm.backup.keep_snapshot != "metadata")
        await snapshot.sweep(session.pool, session.owner, vm.uuid, keep, session.records)
    except asyncio.CancelledError:
        session.pool.hurry()
        _warn(session, vm, _INTERRUPTED)
        raise
    except ProtocolError as error:
        _warn(session, vm, f"an old snapshot could not be removed and will be swept by the next run: {error}")


async def _clean_up(session: Session, vm: SelectedVm, points: Sequence[Point]) -> None:
    """After a failure or an interruption: remove what no point records. What cannot be removed, the next run sweeps."""
    try:
        async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
            # Read anew: what failed may have made what nobody was told of.
            records = await read_records(session.pool)
            await snapshot.sweep(session.pool, session.owner, vm.uuid, bases(points), records)
        session.unfinished.end(vm.uuid)
    except asyncio.CancelledError:
        session.pool.hurry()
        _warn(session, vm, "its snapshot could not be removed in time: what is left will be swept by the next run")
        raise
    except (ProtocolError, TimeoutError) as error:
        why = str(error) or f"that took longer than {_CLEAN_UP_TIMEOUT:g} s"
        _warn(session, vm, f"the snapshot could not be removed and will be swept by the next run: {why}")
