"""Which base an incremental of a disk can start from, and why there is none."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mover.backup.snapshot import SnapshotDisk
from mover.store import Point, PointDisk
from protocol import cbt
from protocol.errors import FormatError, XapiError
from protocol.extent import Extent
from protocol.xapi import Pool

LOST = "the store has lost a part of its last state, which is read again"
NO_NBD = "no network of the pool has the purpose nbd, so changed blocks cannot be read alone"


@dataclass(frozen=True)
class Base:
    """The disk of an earlier restore point whose snapshot still stands on the pool as `snapshot` (a ref)."""

    disk: PointDisk
    point: str
    snapshot: str


@dataclass(frozen=True)
class NoBase:
    """Why a disk has to be read in full. `last` is its newest stored state, if there is one, to compare with."""

    reason: str
    last: PointDisk | None = None


# What of a base snapshot an incremental needs: its CBT log, or its data.
Need = Literal["log", "data"]


async def find_base(
    pool: Pool,
    points: Sequence[Point],
    vdi_uuid: str,
    vdi_ref: str,
    need: Need,
    lost: frozenset[bytes] = frozenset(),
) -> Base | NoBase:
    """Look for the newest of `points` (oldest first) whose snapshot of the live VDI still stands.

    States whose root is in `lost` are not all there: nothing is built on them, or compared with them.
    """
    if any(disk.root in lost for point in points for disk in point.record.disks if disk.vdi_uuid == vdi_uuid):
        points = [point for point in points if not _incomplete(point, vdi_uuid, lost)]
        found = await find_base(pool, points, vdi_uuid, vdi_ref, need)
        return found if isinstance(found, Base) else NoBase(LOST, found.last)
    stored = [(point, disk) for point in reversed(points) for disk in point.record.disks if disk.vdi_uuid == vdi_uuid]
    if not stored:
        return NoBase("first backup of this disk")
    last = stored[0][1]
    reason = "no snapshot was kept after the last backup"
    for point, disk in stored:
        if not disk.snapshot_uuid:
            continue
        try:
            ref = await pool.call("VDI.get_by_uuid", disk.snapshot_uuid)
            record = await pool.call("VDI.get_record", ref)
        except XapiError as error:
            if error.code not in {"UUID_INVALID", "HANDLE_INVALID"}:
                raise
            reason = f"the base snapshot {disk.snapshot_uuid} is gone from the pool"
            continue
        if record["snapshot_of"] != vdi_ref:
            # A revert gives the VM new disks and hands the old snapshots over to them.
            return NoBase(f"the base snapshot {disk.snapshot_uuid} is no longer one of this disk", last)
        lacks = _lacks(record, need)
        if lacks:
            return NoBase(f"the base snapshot {disk.snapshot_uuid} {lacks}", last)
        return Base(disk, point.id, ref)
    return NoBase(reason, last)


def _incomplete(point: Point, vdi: str, lost: frozenset[bytes]) -> bool:
    return any(disk.vdi_uuid == vdi and disk.root in lost for disk in point.record.disks)


def _lacks(record: dict[str, Any], need: Need) -> str | None:
    if need == "log":
        return None if record.get("cbt_enabled", False) else "has no CBT log"
    return "has only its CBT log left" if record["type"] == "cbt_metadata" else None


def bases(points: Sequence[Point]) -> set[str]:
    """The snapshots (UUIDs) that the next incremental of a VM could start from: what each disk's newest state names.

    States that name none do not count: those of a job that keeps no snapshot must not cost another job its base.
    """
    newest: dict[str, str] = {}
    for point in points:
        for disk in point.record.disks:
            if uuid := disk.snapshot_uuid or disk.base_snapshot:
                newest[disk.vdi_uuid] = uuid
    return set(newest.values())


def settle(found: Base | NoBase, mode: str, no_cbt: str | None) -> Base | NoBase:
    """What becomes of a base that was `found`, given the `mode` asked for and why the disk was not tracked, if so."""
    if isinstance(found, NoBase):
        return NoBase(no_cbt, found.last) if found.last is not None and no_cbt else found
    if mode == "full":
        return NoBase("a full was asked for", found.disk)
    return NoBase(no_cbt, found.disk) if no_cbt else found


async def changed_extents(pool: Pool, base: Base, snapshot: SnapshotDisk, chunk_size: int) -> Sequence[Extent] | NoBase:
    """The chunks that CBT says have changed between the base and `snapshot`, or why it cannot say."""
    if not snapshot.cbt:
        return NoBase("CBT is off on this disk", base.disk)
    if snapshot.size < base.disk.size:
        return NoBase(f"the disk shrank from {base.disk.size} to {snapshot.size} bytes", base.disk)
    try:
        bitmap = await pool.run("VDI.list_changed_blocks", base.snapshot, snapshot.ref)
        return cbt.changed_extents(base64.b64decode(bitmap, validate=True), base.disk.size, snapshot.size, chunk_size)
    except XapiError as error:
        return NoBase(f"the pool cannot list changed blocks: {error}", base.disk)
    except (FormatError, ValueError) as error:
        return NoBase(f"the list of changed blocks is damaged: {error}", base.disk)
