"""Snapshots on the pool: taking them, keeping one as the base of the next incremental, removing the rest.

Everything made here is tagged in `other_config`, so that what a killed run leaves behind is found and swept by the
next one, and nobody else's snapshots are ever touched. Nor is a disk that somebody has attached to another VM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mover.backup.records import PoolRecords
from mover.backup.tags import Owner, as_ours
from protocol.errors import XapiError
from protocol.xapi import Pool

# xapi gives the control domain's VBDs of NBD and exports back with a delay; until then the VDI counts as in use.
_IN_USE_TRIES = 24
_IN_USE_WAIT = 0.25
_IN_USE_LONGEST_WAIT = 5.0
# What says that an object is in use for now, and what says that it is gone already.
_BUSY = frozenset({"VDI_IN_USE", "OTHER_OPERATION_IN_PROGRESS"})
_GONE = frozenset({"HANDLE_INVALID", "UUID_INVALID"})
# Power states in which VM.checkpoint finds memory.
WITH_MEMORY = frozenset({"Running", "Suspended"})
_NULL = "OpaqueRef:NULL"


@dataclass(frozen=True)
class SnapshotDisk:
    """The snapshot `ref` (`uuid`) of the live VDI `live`; `size` in bytes is the snapshot's.

    `image_format` is what the SR keeps it in, "" where it does not say; `other_config` as it was when it was taken.
    """

    ref: str
    uuid: str
    live: str
    size: int
    cbt: bool
    image_format: str = ""
    other_config: dict[str, str] = field(default_factory=dict[str, str], compare=False)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot VM and the snapshots of its disks; `memory` is the image it was suspended to, if it was."""

    ref: str
    uuid: str
    disks: tuple[SnapshotDisk, ...]
    memory: SnapshotDisk | None = None

    def of(self, live: str) -> SnapshotDisk | None:
        """The snapshot of the live VDI with this ref."""
        return next((disk for disk in self.disks if disk.live == live), None)


async def take(
    pool: Pool, vm: str, name: str, tags: dict[str, str], ignored: Sequence[str], *, quiesce: bool, memory: bool
) -> tuple[Snapshot, list[str]]:
    """Snapshot the VM `vm` without the VDIs `ignored`, and tag what was made.

    Returns the snapshot and, where one with memory or a quiesced one was asked for but not to be had, why. Memory comes
    first: a VM whose memory is saved needs no quiescing. Raises `XapiError`.
    """
    refused: list[str] = []
    ref: str | None = None
    if memory and await pool.call("VM.get_power_state", vm) in WITH_MEMORY:
        try:
            ref = str(await pool.run("VM.checkpoint", vm, name))
        except XapiError as error:
            refused.append(f"no snapshot with memory ({error})")
    if ref is None and quiesce:
        try:
            ref = str(await pool.run("VM.snapshot_with_quiesce", vm, name))
        except XapiError as error:
            # Current pools do not know the call any more: the regular snapshot is the normal case, not the exception.
            refused.append(f"no quiesced snapshot ({error})")
    if ref is None:
        ref = await _plain_snapshot(pool, vm, name, ignored)
    record = await pool.call("VM.get_record", ref)
    await _tag(pool, "VM", ref, record["other_config"], tags, record["uuid"])
    snapshot = await _describe(pool, ref, record)
    for disk in (*snapshot.disks, *filter(None, [snapshot.memory])):
        await _tag(pool, "VDI", disk.ref, disk.other_config, tags, disk.uuid)
    unwanted = [disk for disk in snapshot.disks if disk.live in ignored]
    for disk in unwanted:
        await _destroy_disk(pool, disk.ref, {ref})
    kept = tuple(disk for disk in snapshot.disks if disk not in unwanted)
    return replace(snapshot, disks=kept), refused


async def _plain_snapshot(pool: Pool, vm: str, name: str, ignored: Sequence[str]) -> str:
    if ignored:
        try:
            return str(await pool.run("VM.snapshot", vm, name, list(ignored)))
        except XapiError as error:
            # Before 21.4.0 the call took two parameters; the snapshots of ignored disks are destroyed instead.
            if error.code != "MESSAGE_PARAMETER_COUNT_MISMATCH":
                raise
    return str(await pool.run("VM.snapshot", vm, name))


async def _tag(pool: Pool, kind: str, ref: str, other_config: dict[str, str], tags: dict[str, str], uuid: str) -> None:
    await pool.call(f"{kind}.set_other_config", ref, as_ours(other_config, tags, uuid), repeatable=True)


async def _describe(pool: Pool, ref: str, record: dict[str, Any]) -> Snapshot:
    """The snapshot whose record this is."""
    disks: list[SnapshotDisk] = []
    for vbd_ref in record["VBDs"]:
        vbd = await pool.call("VBD.get_record", vbd_ref)
        if vbd["type"] != "Disk" or vbd["empty"]:
            continue
        disks.append(await _describe_disk(pool, vbd["VDI"]))
    image = _memory_of(record)
    return Snapshot(ref, record["uuid"], tuple(disks), await _describe_disk(pool, image) if image else None)


async def _describe_disk(pool: Pool, ref: str) -> SnapshotDisk:
    vdi = await pool.call("VDI.get_record", ref)
    return SnapshotDisk(
        ref=ref,
        uuid=vdi["uuid"],
        live=vdi["snapshot_of"],
        size=int(vdi["virtual_size"]),
        cbt=bool(vdi.get("cbt_enabled", False)),
        image_format=str(vdi["sm_config"].get("image-format", "")),
        other_config=vdi["other_config"],
    )


def _memory_of(vm: dict[str, Any]) -> str | None:
    """The image (a ref) that a VM was suspended to."""
    image = str(vm["suspend_VDI"])
    return image if vm["power_state"] == "Suspended" and image != _NULL else None


async def find(pool: Pool, owner: Owner, vm: str, uuid: str) -> Snapshot | None:
    """The snapshot with this UUID, if `owner` made it of the VM with UUID `vm` and all its disks have their data."""
    try:
        ref = await pool.call("VM.get_by_uuid", uuid)
        record = await pool.call("VM.get_record", ref)
        live = await pool.call("VM.get_uuid", record["snapshot_of"])
        found = await _describe(pool, ref, record)
        types = [await pool.call("VDI.get_type", disk.ref) for disk in found.disks]
    except XapiError as error:
        if error.code in _GONE:
            return None
        raise
    return found if owner.owns_vm(record, vm, live) and "cbt_metadata" not in types else None


async def remove(pool: Pool, snapshot: Snapshot) -> None:
    """Destroy a snapshot and the data of its disks. What is gone already counts as removed."""
    await destroy_vm(pool, snapshot.ref)
    for disk in snapshot.disks:
        await _destroy_disk(pool, disk.ref, {snapshot.ref})
    if snapshot.memory is not None:
        await destroy_vdi(pool, snapshot.memory.ref)


async def drop_memory(pool: Pool, snapshot: Snapshot) -> None:
    """Destroy the image of the memory; what stays is a snapshot like any other. VM.destroy would leave it behind."""
    if snapshot.memory is not None:
        await pool.run("VM.hard_shutdown", snapshot.ref)
        await destroy_vdi(pool, snapshot.memory.ref)


async def keep_only(pool: Pool, snapshot: Snapshot, keep: Collection[str], *, data: bool) -> None:
    """Remove of a snapshot all but the disks with UUIDs in `keep`.

    Without `data`, only the CBT logs of these stay: the snapshot VM goes, and tracked disks become `cbt_metadata`.
    """
    kept = [disk for disk in snapshot.disks if disk.uuid in keep]
    if not kept:
        await remove(pool, snapshot)
        return
    if not data:
        await destroy_vm(pool, snapshot.ref)
    for disk in snapshot.disks:
        if disk not in kept or not (data or disk.cbt):
            await _destroy_disk(pool, disk.ref, {snapshot.ref})
        elif not data:
            await _while_in_use(pool, "VDI.data_destroy", disk.ref)
    if snapshot.memory is not None:
        await destroy_vdi(pool, snapshot.memory.ref)


async def destroy_vm(pool: Pool, ref: str) -> None:
    """Destroy a snapshot VM's record; its disks stay."""
    await _while_in_use(pool, "VM.destroy", ref)


async def destroy_vdi(pool: Pool, ref: str) -> None:
    """Destroy a VDI, waiting while the pool says that it is still in use."""
    await _while_in_use(pool, "VDI.destroy", ref)


async def _destroy_disk(pool: Pool, ref: str, ours: Collection[str]) -> None:
    """Destroy a disk of a snapshot, but not one that is in use by another VM than `ours` (refs)."""
    if not await _elsewhere(pool, ref, ours):
        await destroy_vdi(pool, ref)


async def _elsewhere(pool: Pool, vdi: str, ours: Collection[str]) -> bool:
    """Whether a VM that is not one of `ours` (refs) has this VDI in a drive, plugged or not.

    A control domain may have it for what was read through it, and gives it back by itself. Asked for only when it
    matters: anybody may attach it at any time.
    """
    for vbd in await _unless_gone(pool, "VDI.get_VBDs", vdi) or []:
        vm = await _unless_gone(pool, "VBD.get_VM", vbd)
        if vm and vm not in ours and await _unless_gone(pool, "VM.get_is_control_domain", vm) is False:
            return True
    return False


async def _unless_gone(pool: Pool, call: str, ref: str) -> Any:
    """What a call says of an object; None if that is gone."""
    try:
        return await pool.call(call, ref)
    except XapiError as error:
        if error.code not in _GONE:
            raise
        return None


async def _while_in_use(pool: Pool, call: str, ref: str) -> None:
    wait = _IN_USE_WAIT
    for tries_left in reversed(range(_IN_USE_TRIES)):
        try:
            await pool.run(call, ref)
            return
        except XapiError as error:
            if error.code in _GONE:
                return
            if error.code not in _BUSY or not tries_left:
                raise
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, _IN_USE_LONGEST_WAIT)


async def sweep(pool: Pool, owner: Owner, vm: str, keep: Collection[str], records: PoolRecords) -> None:
    """Remove every snapshot of the VM with UUID `vm` in `records` that `owner` made, but the VDIs with UUIDs in `keep`.

    A VDI that another VM has in a drive stays, and a snapshot VM as long as one of its disks does.
    """
    ours = {
        ref: [disk for disk in records.disks_of(record) if records.vdis[disk]["is_a_snapshot"]]
        for ref, record in records.vms.items()
        if owner.owns_vm(record, vm, records.vms.get(record["snapshot_of"], {}).get("uuid"))
    }
    # Killed between the snapshot and its tags, a run leaves disks that only their VM's name tells as ours.
    found = {disk for disks in ours.values() for disk in disks}
    found.update(ref for ref, record in records.vdis.items() if owner.owns_disk(record, vm))
    unwanted = [ref for ref in found if records.vdis[ref]["uuid"] not in keep]
    stale = {ref for ref in unwanted if not await _elsewhere(pool, ref, ours)}
    for ref, disks in ours.items():
        if stale.issuperset(disks):
            await destroy_vm(pool, ref)
    for ref in stale:
        await destroy_vdi(pool, ref)
