"""Strategy `cbt`: changed blocks, each disk by itself, over NBD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mover.backup import snapshot
from mover.backup.base import Base, NoBase, find_base, settle
from mover.backup.copy import LiveDisk
from mover.backup.disk import back_up_disk, refuse_full
from mover.backup.session import Session
from mover.backup.tags import Owner
from mover.events import Note
from mover.job import SelectedVm
from mover.store import PartialVm, Point, PointDisk
from protocol.errors import XapiError
from protocol.tasks import task_group
from protocol.xapi import Pool


class Left(NamedTuple):
    """What a killed run has left: its note in the store, and the snapshot on the pool."""

    noted: PartialVm
    taken: snapshot.Snapshot

    def stored_of(self, live: str) -> int:
        """So many bytes from the beginning of the disk `live` (a ref) are noted down as stored."""
        of = self.taken.of(live)
        return next((disk.done for disk in self.noted.disks if of and disk.snapshot_uuid == of.uuid), 0)


async def enable_cbt(session: Session, vm: SelectedVm) -> dict[str, str]:
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
            message = f"CBT cannot be turned on for {disk.name}: {error}"
            session.emit(Note(level="warning", vm=vm.uuid, disk=disk.position, message=message))
    return reasons


async def copy_disks(
    session: Session,
    vm: SelectedVm,
    disks: Sequence[LiveDisk],
    points: Sequence[Point],
    reasons: dict[str, str],
    left: PartialVm | None,
    *,
    keep_base: bool,
) -> list[PointDisk]:
    """Read every disk, several at once. `reasons` are those of `enable_cbt`, `points` the VM's, oldest first.

    `left` is what a run that was killed has stored of these snapshots.

    Raises `NoIncrementalError` where the job forbids the full that is needed, and what `back_up_disk` raises.
    """
    bases = [await _base(session, vm, disk, points, reasons) for disk in disks]
    stored = {disk.snapshot_uuid: disk for disk in left.disks} if left else {}
    async with task_group() as group:
        reads = [
            group.create_task(
                back_up_disk(
                    session,
                    vm,
                    disk,
                    base,
                    stored.get(disk.snapshot.uuid),
                    full_read=vm.backup.full_read,
                    keep_snapshot=keep_base,
                )
            )
            for disk, base in zip(disks, bases, strict=True)
        ]
    return [read.result() for read in reads]


async def left_to_go_on(
    pool: Pool, owner: Owner, noted: PartialVm | None, vm: SelectedVm, points: Sequence[Point], lost: frozenset[bytes]
) -> Left | None:
    """The snapshot that a killed run has left, with what is stored of it, if the next run would read it in full again.

    It has to be one of all the disks selected, and still there, and no restore point may have come of it. `noted` is
    what that run has noted down, `points` are the VM's, oldest first; states whose root is in `lost` are not all there.
    """
    if noted is None or any(point.record.snapshot_uuid == noted.snapshot_uuid for point in points):
        return None
    taken = await snapshot.find(pool, owner, vm.uuid, noted.snapshot_uuid)
    if taken is None:
        return None
    stored = {disk.snapshot_uuid for disk in noted.disks}
    for disk in vm.disks:
        of = taken.of(disk.vdi)
        if of is None:
            return None
        found = await find_base(pool, points, disk.vdi_uuid, disk.vdi, "log", lost)
        if of.uuid in stored and isinstance(settle(found, vm.backup.mode, None), Base):
            return None
    return Left(noted, taken)


async def _base(
    session: Session, vm: SelectedVm, disk: LiveDisk, points: Sequence[Point], reasons: dict[str, str]
) -> Base | NoBase:
    found = await find_base(session.pool, points, disk.vdi_uuid, disk.vdi, "log", session.lost)
    base = settle(found, vm.backup.mode, reasons.get(disk.vdi))
    if isinstance(base, NoBase):
        refuse_full(vm, disk, base)
    return base
