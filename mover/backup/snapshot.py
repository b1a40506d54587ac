"""Snapshots on the pool: taking them, keeping one as the base of the next incremental, removing the rest.

Everything made here is tagged in `other_config`, so that what a killed run leaves behind is found and swept by the
next one, and nobody else's snapshots are ever touched.
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
    await _tag(pool, "VM", ref, record["other_config"], tags)
    snapshot = await _describe(pool, ref, record)
    for disk in (*snapshot.disks, *filter(None, [snapshot.memory])):
        await _tag(pool, "VDI", disk.ref, disk.other_config, tags)
    unwanted = [disk for disk in snapshot.disks if disk.live in ignored]
    for disk in unwanted:
        await destroy_vdi(pool, disk.ref)
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


async def _tag(pool: Pool, kind: str, ref: str, other_config: dict[str, str], tags: dict[str, str]) -> None:
    await pool.call(f"{kind}.set_other_config", ref, as_ours(other_config, tags), repeatable=True)


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
        found = await _describe(pool, ref, record)
        types = [await pool.call("VDI.get_type", disk.ref) for disk in found.disks]
    except XapiError as error:
        if error.code in _GONE:
            return None
        raise
    return found if owner.owns(record["other_config"], vm) and "cbt_metadata" not in types else None


async def remove(pool: Pool, snapshot: Snapshot) -> None:
    """Destroy a snapshot and the data of its disks. What is gone already counts as removed."""
    await destroy_vm(pool, snapshot.ref)
    for disk in (*snapshot.disks, *filter(None, [snapshot.memory])):
        await destroy_vdi(pool, disk.ref)


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
            await destroy_vdi(pool, disk.ref)
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

    A snapshot VM stays as long as one of its disks does.
    """
    stale = {
        ref
        for ref, record in records.vdis.items()
        if record["is_a_snapshot"] and owner.owns(record["other_config"], vm) and record["uuid"] not in keep
    }
    for ref, record in records.vms.items():
        if not record["is_a_snapshot"]:
            continue
        live = records.vms.get(record["snapshot_of"], {}).get("uuid")
        named = live == vm and owner.named(record["name_label"])
        if not (named or owner.owns(record["other_config"], vm)):
            continue
        disks = [disk for disk in records.disks_of(record) if records.vdis[disk]["is_a_snapshot"]]
        if any(records.vdis[disk]["uuid"] in keep for disk in disks):
            continue
        await destroy_vm(pool, ref)
        # Killed between the snapshot and its tags, a run leaves disks that only their VM's name tells as ours.
        stale.update(disks)
    for ref in stale:
        await destroy_vdi(pool, ref)
