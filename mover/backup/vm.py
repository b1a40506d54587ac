"""One VM: snapshot, metadata, all disks, the commit, and what stays on the pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from mover.backup import metadata, snapshot
from mover.backup.base import Base, NoBase, bases, find_base, settle
from mover.backup.disk import LiveDisk, back_up_disk
from mover.backup.hooks import around_snapshot
from mover.backup.session import Session
from mover.errors import NoIncrementalError
from mover.events import Note
from mover.job import SelectedVm
from mover.store import Point, PointDisk, PointRecord
from protocol.errors import ProtocolError, XapiError
from protocol.tasks import task_group

# How long cleaning up on the pool may take once a backup has failed or was interrupted.
_CLEAN_UP_TIMEOUT = 60.0


async def back_up_vm(session: Session, vm: SelectedVm, *, keep_base: bool) -> str:
    """Back up one VM and return the id of its restore point. Leaves no snapshot behind if it fails."""
    readable, damaged = session.store.readable_points()
    for damage in damaged:
        _warn(session, vm, f"the restore point {damage.object} is damaged ({damage.reason}): run mover verify")
    points = [point for point in readable if point.record.vm_uuid == vm.uuid]
    await snapshot.sweep(session.pool, session.owner, vm.uuid, bases(points))
    try:
        record, taken = await _snapshot_and_copy(session, vm, points, keep_base=keep_base)
        point = await session.in_thread(lambda: session.writer.commit(record))
    except BaseException:
        await _clean_up(session, vm, points)
        raise
    await _settle(session, vm, taken, record)
    return point


async def _snapshot_and_copy(
    session: Session, vm: SelectedVm, points: Sequence[Point], *, keep_base: bool
) -> tuple[PointRecord, snapshot.Snapshot]:
    cbt_reasons = await _enable_cbt(session, vm)
    async with around_snapshot(session, session.hooks, vm):
        taken, unquiesced = await snapshot.take(
            session.pool,
            vm.ref,
            session.owner.snapshot_name(session.run),
            session.owner.tags(vm=vm.uuid, run=session.run),
            [disk.vdi for disk in vm.excluded_disks],
            quiesce=vm.backup.quiesce,
        )
    if unquiesced:
        _warn(session, vm, f"no quiesced snapshot ({unquiesced}): took a regular one")
    return await _copy(session, vm, taken, points, cbt_reasons, keep_base=keep_base), taken


def _warn(session: Session, vm: SelectedVm, message: str, disk: str | None = None) -> None:
    session.emit(Note(level="warning", vm=vm.uuid, disk=disk, message=message))


async def _enable_cbt(session: Session, vm: SelectedVm) -> dict[str, str]:
    """Turn CBT on where it is off, before the snapshot. Returns, by VDI, why it was off or cannot be turned on."""
    reasons: dict[str, str] = {}
    for disk in vm.disks:
        if disk.cbt:
            continue
        try:
            await session.pool.run("VDI.enable_cbt", disk.vdi)
            # A snapshot taken before the log exists has none, and the incremental after it would fail.
            if not await session.pool.call("VDI.get_cbt_enabled", disk.vdi):
                raise XapiError("CBT_NOT_ENABLED", [disk.vdi_uuid], "VDI.enable_cbt")
            reasons[disk.vdi] = "CBT was off until this run"
        except XapiError as error:
            reasons[disk.vdi] = f"CBT cannot be turned on: {error}"
            _warn(session, vm, f"CBT cannot be turned on for {disk.name}: {error}", disk.position)
    return reasons


async def _copy(
    session: Session,
    vm: SelectedVm,
    taken: snapshot.Snapshot,
    points: Sequence[Point],
    cbt_reasons: dict[str, str],
    *,
    keep_base: bool,
) -> PointRecord:
    started = time.time()
    about = await metadata.collect(session.pool, session.transfers, vm.ref, taken.ref)
    if about.ova_xml is None:
        session.emit(Note(level="info", vm=vm.uuid, message="the pool gave no ova.xml; its records were saved"))
    if about.vtpms.keys() - about.vtpm_contents.keys():
        _warn(session, vm, "the TPM's contents are for the pool's root user only and are not in this backup")
    blob = await session.in_thread(lambda: session.writer.put_blob(metadata.encode(about)))
    disks: list[LiveDisk] = []
    for disk in vm.disks:
        of = taken.of(disk.vdi)
        if of is None:
            _warn(session, vm, f"{disk.name} has no snapshot and is not part of this backup", disk.position)
            continue
        disks.append(LiveDisk(disk.position, disk.name, disk.vdi, disk.vdi_uuid, of))
    found = [await _base(session, vm, disk, points, cbt_reasons) for disk in disks]
    async with task_group() as group:
        reads = [
            group.create_task(
                back_up_disk(session, vm.uuid, disk, base, full_read=vm.backup.full_read, keep_snapshot=keep_base)
            )
            for disk, base in zip(disks, found, strict=True)
        ]
    done: list[PointDisk] = [read.result() for read in reads]
    return PointRecord(
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        created=started,
        job=session.job,
        run=session.run,
        schedule=session.schedule,
        strategy=vm.backup.strategy,
        snapshot_uuid=taken.uuid,
        metadata=blob,
        disks=done,
    )


async def _base(
    session: Session, vm: SelectedVm, disk: LiveDisk, points: Sequence[Point], cbt_reasons: dict[str, str]
) -> Base | NoBase:
    found = await find_base(session.pool, points, disk.vdi_uuid, disk.vdi)
    base = settle(found, vm.backup.mode, cbt_reasons.get(disk.vdi))
    if isinstance(base, NoBase) and vm.backup.mode == "incremental":
        raise NoIncrementalError(
            f"{vm.name}, disk {disk.position} ({disk.name}): the job allows incrementals only, and {base.reason}",
            'run it with --full, or set mode = "auto"',
        )
    return base


async def _settle(session: Session, vm: SelectedVm, taken: snapshot.Snapshot, record: PointRecord) -> None:
    """After the commit: keep the new base if one is wanted, remove what it replaces. Failing here loses nothing."""
    keep = {disk.snapshot_uuid for disk in record.disks if disk.snapshot_uuid}
    try:
        if not keep:
            await snapshot.remove(session.pool, taken)
        elif vm.backup.keep_snapshot == "metadata":
            await snapshot.keep_metadata(session.pool, taken)
        await snapshot.sweep(session.pool, session.owner, vm.uuid, keep)
    except ProtocolError as error:
        _warn(session, vm, f"an old snapshot could not be removed and will be swept by the next run: {error}")


async def _clean_up(session: Session, vm: SelectedVm, points: Sequence[Point]) -> None:
    """After a failure or an interruption: remove what no point records. What cannot be removed, the next run sweeps."""
    try:
        async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
            await snapshot.sweep(session.pool, session.owner, vm.uuid, bases(points))
    except (ProtocolError, TimeoutError) as error:
        _warn(session, vm, f"the snapshot could not be removed and will be swept by the next run: {error}")
