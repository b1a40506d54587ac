"""What the next run would read of one disk: the same questions to the pool that the run asks, and no more."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from mover.backup.base import NO_NBD, Base, NoBase, changed_extents, find_base, settle
from mover.backup.cbt import Left
from mover.backup.snapshot import SnapshotDisk
from mover.explain.snapshots import KeptSnapshot
from mover.job import SelectedDisk, SelectedVm
from mover.job.select import Records
from mover.store import Point
from mover.units import format_size
from protocol.errors import XapiError
from protocol.extent import total
from protocol.nbd import Endpoint
from protocol.xapi import Pool, nbd_endpoints

# So many of the last incrementals are looked at to guess the next one.
_HISTORY = 5


class DiskOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """How a disk would be read. `to_read` is in bytes, null if not known; `estimate` says how it is known.

    `stored` is how many bytes from the disk's beginning a run that was killed has left in the store.
    """

    position: str
    name: str
    vdi: str
    size: int
    mode: Literal["full", "incremental"]
    reason: str | None
    base_point: str | None
    base_snapshot: str | None
    over: Literal["NBD", "HTTP"]
    to_read: int | None
    estimate: str
    stored: int = 0


class VmOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What would become of a VM: `refused` says why it would fail; `last_point` is its newest restore point.

    `memory`: what it has there is taken along. `goes_on_with` is the UUID of the snapshot that a killed run has left,
    which is then taken in place of a new one.
    """

    uuid: str
    name: str
    strategy: str
    mode: str
    last_point: str | None
    refused: str | None
    disks: list[DiskOutlook]
    excluded: list[str]
    memory: bool
    goes_on_with: str | None
    snapshots: list[KeptSnapshot]


async def outlook(
    pool: Pool,
    vm: SelectedVm,
    disk: SelectedDisk,
    points: Sequence[Point],
    lost: frozenset[bytes],
    vbds: Records,
    chunk_size: int,
    left: Left | None,
) -> DiskOutlook:
    """Say how `disk` would be read. Raises what `Pool.call` raises.

    `points` are the VM's, oldest first; `lost` the roots of states that are not all there; `left` is what a killed run
    has left of the VM to go on with.
    """
    if vm.backup.strategy == "xva":
        return await _streamed(pool, vm, disk, points, lost)
    endpoints = await live_endpoints(pool, disk.vdi)
    found = await find_base(pool, points, disk.vdi_uuid, disk.vdi, "log", lost)
    base = settle(found, vm.backup.mode, None if disk.cbt else "CBT is off on this disk, the run turns it on")
    if isinstance(base, Base) and not endpoints:
        base = NoBase(NO_NBD, base.disk)
    if isinstance(base, Base) and disk.size < base.disk.size:
        base = NoBase(f"the disk shrank from {base.disk.size} to {disk.size} bytes", base.disk)
    to_read: int | None = None
    estimate = ""
    stored = 0
    if isinstance(base, Base):
        snapshot = _to_compare(disk, vbds, left)
        if snapshot is None:
            to_read, estimate = _guess(points, disk.vdi_uuid, "incremental")
            estimate += "; what has changed is not told while the disk is attached"
        else:
            changed = await changed_extents(pool, base, snapshot, chunk_size)
            if isinstance(changed, NoBase):
                base = changed
            else:
                to_read, estimate = total(changed), "changed since the base, by CBT"
    over_nbd = bool(endpoints) and (isinstance(base, Base) or vm.backup.full_read == "nbd")
    if isinstance(base, NoBase):
        to_read, estimate = _full(points, disk, over_nbd=over_nbd)
        stored = left.stored_of(disk.vdi) if left and over_nbd else 0
    if stored:
        to_read = disk.size - stored
        estimate = f"at most: a run that was killed has stored the first {format_size(stored)}"
    return _disk_outlook(disk, base, to_read, estimate, over_nbd=over_nbd, stored=stored)


def _to_compare(disk: SelectedDisk, vbds: Records, left: Left | None) -> SnapshotDisk | None:
    """What the base can be compared with now: the snapshot that the run would go on with, else the disk at rest."""
    if left is not None:
        return left.taken.of(disk.vdi)
    if any(vbd["VDI"] == disk.vdi and vbd["currently_attached"] for vbd in vbds.values()):
        return None
    return SnapshotDisk(ref=disk.vdi, uuid=disk.vdi_uuid, live=disk.vdi, size=disk.size, cbt=disk.cbt)


async def _streamed(
    pool: Pool, vm: SelectedVm, disk: SelectedDisk, points: Sequence[Point], lost: frozenset[bytes]
) -> DiskOutlook:
    """By strategy xva. How much a difference holds, only the export itself tells."""
    base = settle(await find_base(pool, points, disk.vdi_uuid, disk.vdi, "data", lost), vm.backup.mode, None)
    if isinstance(base, Base) and disk.size < base.disk.size:
        base = NoBase(f"the disk shrank from {base.disk.size} to {disk.size} bytes", base.disk)
    to_read, estimate = _guess(points, disk.vdi_uuid, "incremental" if isinstance(base, Base) else "full")
    return _disk_outlook(disk, base, to_read, estimate, over_nbd=False)


def together(disks: Sequence[DiskOutlook]) -> list[DiskOutlook]:
    """The disks of a VM of strategy xva: an XVA holds all of them, so one that has no base makes all of them full."""
    why = next((disk.reason for disk in disks if disk.mode == "full"), None)
    reason = f"an XVA holds all disks, and of another one {why}"
    return [
        disk
        if why is None or disk.mode == "full"
        else msgspec.structs.replace(disk, mode="full", reason=reason, base_point=None, base_snapshot=None)
        for disk in disks
    ]


def _disk_outlook(
    disk: SelectedDisk, base: Base | NoBase, to_read: int | None, estimate: str, *, over_nbd: bool, stored: int = 0
) -> DiskOutlook:
    return DiskOutlook(
        position=disk.position,
        name=disk.name,
        vdi=disk.vdi_uuid,
        size=disk.size,
        mode="incremental" if isinstance(base, Base) else "full",
        reason=base.reason if isinstance(base, NoBase) else None,
        base_point=base.point if isinstance(base, Base) else None,
        base_snapshot=base.disk.snapshot_uuid if isinstance(base, Base) else None,
        over="NBD" if over_nbd else "HTTP",
        to_read=to_read,
        estimate=estimate,
        stored=stored,
    )


async def live_endpoints(pool: Pool, vdi: str) -> list[Endpoint]:
    """Where the disk could be read over NBD; nowhere on releases from before there was NBD."""
    try:
        return await nbd_endpoints(pool, vdi)
    except XapiError as error:
        if error.code in ("MESSAGE_METHOD_UNKNOWN", "VDI_INCOMPATIBLE_TYPE"):
            return []
        raise


def _full(points: Sequence[Point], disk: SelectedDisk, *, over_nbd: bool) -> tuple[int, str]:
    if not over_nbd:
        return disk.size, "all of it"
    read, estimate = _guess(points, disk.vdi_uuid, "full")
    return (disk.size, "at most: what is not allocated is not read") if read is None else (read, estimate)


def _guess(points: Sequence[Point], vdi: str, mode: str) -> tuple[int | None, str]:
    """From what was read of this disk before, in this way."""
    reads = [disk.read for point in points for disk in point.record.disks if (disk.vdi_uuid, disk.mode) == (vdi, mode)]
    if not reads:
        return None, f"no {mode} of this disk to go by"
    kept = reads[-1:] if mode == "full" else reads[-_HISTORY:]
    few = f"the last {len(kept)} {mode}s" if len(kept) > 1 else f"the last {mode}"
    return int(statistics.median(kept)), f"as {few}"
