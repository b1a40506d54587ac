"""A VM of a restore point onto a pool: its record, its disks, its network interfaces, its TPM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mover.backup.metadata import VmMetadata, decode
from mover.backup.snapshot import destroy_vdi, destroy_vm
from mover.errors import NotFoundError
from mover.events import Emit, Note
from mover.restore.choice import choose_disks
from mover.restore.disk_stream import import_disk
from mover.restore.networks import match_networks
from mover.restore.options import RestoreOptions
from mover.restore.vm_record import NULL, Record, vbd_arguments, vdi_arguments, vif_arguments, vm_arguments
from mover.store import Point, PointDisk, Store
from protocol.arena import Arena
from protocol.errors import ProtocolError, XapiError
from protocol.tasks import task_group
from protocol.xapi import Pool, Transfers

_SLOTS = 24
_DISKS_AT_ONCE = 4
_CLEAN_UP_TIMEOUT = 60.0
_BLOCKED = ("start", "start_on")


@dataclass(frozen=True)
class RestoredVm:
    """What a restore made: the new VM and, by position, its new VDIs (refs and UUIDs)."""

    ref: str
    uuid: str
    name: str
    vdis: dict[str, str]


@dataclass(frozen=True)
class _Plan:
    """Everything decided before the first object is made."""

    name: str
    new_macs: bool
    networks: dict[str, str]
    srs: dict[str, str]
    disks: list[PointDisk]


async def restore_to_pool(
    store: Store, point: Point, pool: Pool, transfers: Transfers, options: RestoreOptions, emit: Emit
) -> RestoredVm:
    """Make the VM of `point` anew on `pool`.

    If a VM with its UUID is still there, the new one gets new MAC addresses and a name that tells them apart;
    otherwise it gets its original configuration, MACs included. `options` override both. The new VM cannot be started
    until it is whole; if anything fails, all that was made is destroyed again. Raises `NotFoundError` for networks,
    SRs or disks that do not exist, before anything is made; `StoreDamagedError`; `ProtocolError`.
    """
    saved = decode(store.get_blob(point.record.metadata))
    plan = await _plan(point, saved, pool, options)
    async with _undone_on_failure(pool, emit) as made:
        vm = await pool.call("VM.create", vm_arguments(saved.vm, f"[restoring] {plan.name}", new_macs=plan.new_macs))
        made.vm = vm
        for operation in _BLOCKED:
            await pool.call("VM.add_to_blocked_operations", vm, operation, "a restore is not finished")
        vdis = await _make_disks(store, point, saved, plan, pool, transfers, vm, made, emit)
        for vif in sorted(saved.vifs.values(), key=lambda vif: int(vif["device"])):
            arguments = vif_arguments(vif, vm, plan.networks[vif["network"]], new_mac=plan.new_macs)
            await pool.call("VIF.create", arguments)
        await _make_vtpms(pool, saved, vm, emit)
        await _finish(pool, saved, plan, vm)
    return RestoredVm(vm, await pool.call("VM.get_uuid", vm), plan.name, vdis)


async def _plan(point: Point, saved: VmMetadata, pool: Pool, options: RestoreOptions) -> _Plan:
    disks = choose_disks(point, options.disks)
    present = await _vm_is_present(pool, point.record.vm_uuid)
    new_macs = present if options.new_macs is None else options.new_macs
    name = options.name or point.record.vm_name
    if present and not options.name:
        taken = datetime.fromtimestamp(point.record.created, UTC)
        name = f"{name} (restored {taken:%Y-%m-%d %H:%M:%S})"
    networks = match_networks(
        saved.networks,
        saved.pifs,
        await pool.call("network.get_all_records"),
        await pool.call("PIF.get_all_records"),
        options.networks,
    )
    return _Plan(name, new_macs, networks, await _choose_srs(saved, pool, disks, options.sr), disks)


async def _vm_is_present(pool: Pool, uuid: str) -> bool:
    try:
        await pool.call("VM.get_by_uuid", uuid)
    except XapiError as error:
        if error.code != "UUID_INVALID":
            raise
        return False
    return True


async def _choose_srs(saved: VmMetadata, pool: Pool, disks: list[PointDisk], wanted: str | None) -> dict[str, str]:
    """By VDI UUID, the SR for each disk: the one asked for, else its old one, else the pool's default."""
    present: dict[str, Record] = await pool.call("SR.get_all_records")
    by_uuid = {record["uuid"]: ref for ref, record in present.items()}
    if wanted is not None:
        asked = by_uuid.get(wanted) or next(
            (ref for ref, record in present.items() if record["name_label"] == wanted), None
        )
        if asked is None:
            names = ", ".join(sorted(record["name_label"] for record in present.values()))
            raise NotFoundError(f"the pool has no SR {wanted}", f"it has {names}")
        return {disk.vdi_uuid: asked for disk in disks}
    pools: dict[str, Record] = await pool.call("pool.get_all_records")
    default = next(iter(pools.values()))["default_SR"]
    chosen: dict[str, str] = {}
    for disk in disks:
        vdi = _saved_vdi(saved, disk)
        old = saved.srs.get(vdi.get("SR", NULL), {}).get("uuid", "")
        chosen[disk.vdi_uuid] = by_uuid.get(old) or str(default)
        if chosen[disk.vdi_uuid] not in present:
            raise NotFoundError(f"the SR of {disk.name} is gone and the pool has no default SR", "name one with --sr")
    return chosen


def _saved_vdi(saved: VmMetadata, disk: PointDisk) -> Record:
    return next((vdi for vdi in saved.vdis.values() if vdi["uuid"] == disk.vdi_uuid), {})


@dataclass
class _Made:
    """What has to go if the restore fails."""

    vm: str | None
    vdis: list[str]


@asynccontextmanager
async def _undone_on_failure(pool: Pool, emit: Emit) -> AsyncIterator[_Made]:
    made = _Made(None, [])
    try:
        yield made
    except BaseException:
        try:
            async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                if made.vm:
                    await destroy_vm(pool, made.vm)
                for vdi in made.vdis:
                    await destroy_vdi(pool, vdi)
        except (ProtocolError, TimeoutError) as error:
            left = f"VM {made.vm}, VDIs {', '.join(made.vdis) or 'none'}"
            emit(Note(level="warning", message=f"the failed restore could not be undone ({error}); left: {left}"))
        raise


async def _make_disks(
    store: Store,
    point: Point,
    saved: VmMetadata,
    plan: _Plan,
    pool: Pool,
    transfers: Transfers,
    vm: str,
    made: _Made,
    emit: Emit,
) -> dict[str, str]:
    by_uuid = {disk.vdi_uuid: disk for disk in plan.disks}
    vdis: dict[str, str] = {}
    for vbd in sorted(saved.vbds.values(), key=lambda vbd: int(vbd["userdevice"])):
        if vbd["type"] == "CD":
            await pool.call("VBD.create", vbd_arguments(vbd, vm, None))
            continue
        vdi_record = saved.vdis.get(vbd["VDI"])
        disk = by_uuid.get(vdi_record["uuid"]) if vdi_record else None
        if disk is None or vdi_record is None:
            emit(
                Note(
                    level="info",
                    vm=point.record.vm_uuid,
                    disk=vbd["userdevice"],
                    message="this disk is not part of the restore; its drive is left out",
                )
            )
            continue
        vdi = await pool.call("VDI.create", vdi_arguments(vdi_record, plan.srs[disk.vdi_uuid], disk.size))
        made.vdis.append(vdi)
        await pool.call("VBD.create", vbd_arguments(vbd, vm, vdi))
        vdis[disk.position] = vdi
    arena = Arena(_SLOTS)
    room = asyncio.Semaphore(_DISKS_AT_ONCE)
    with ThreadPoolExecutor(max(os.cpu_count() or 2, store.readers), "restore") as executor:

        async def fill(disk: PointDisk, vdi: str) -> None:
            async with room:
                await import_disk(store, point, disk, transfers, vdi, arena, executor, emit)

        async with task_group() as group:
            for disk in plan.disks:
                if disk.position in vdis:
                    group.create_task(fill(disk, vdis[disk.position]))
    return vdis


async def _make_vtpms(pool: Pool, saved: VmMetadata, vm: str, emit: Emit) -> None:
    for ref, record in saved.vtpms.items():
        vtpm = await pool.call("VTPM.create", vm, bool(record.get("is_unique", False)))
        contents = saved.vtpm_contents.get(ref)
        if contents:
            await pool.call("VTPM.set_contents", vtpm, contents)
        else:
            emit(Note(level="warning", message="the TPM's contents were not saved; the new TPM is blank"))


async def _finish(pool: Pool, saved: VmMetadata, plan: _Plan, vm: str) -> None:
    """What VM.create does not take, in the end the name and the operations that were blocked before."""
    bios: dict[str, Any] = saved.vm.get("bios_strings") or {}
    if bios:
        try:
            await pool.call("VM.set_bios_strings", vm, bios)
        except XapiError as error:
            if error.code != "VM_BIOS_STRINGS_ALREADY_SET":
                raise
    await pool.call("VM.set_name_label", vm, plan.name)
    await pool.call("VM.set_blocked_operations", vm, saved.vm.get("blocked_operations") or {})
