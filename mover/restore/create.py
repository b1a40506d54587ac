"""A VM made of its records through the API, its disks as VHD streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mover.backup.metadata import VmMetadata
from mover.backup.snapshot import destroy_vdi
from mover.events import Emit, Note
from mover.failure import naming
from mover.restore.disk_stream import import_disk
from mover.restore.plan import Plan
from mover.restore.undo import Made, make_vdi, make_vm
from mover.restore.vm_record import (
    Record,
    bios_strings,
    lost_bios_strings,
    suspended_arguments,
    vbd_arguments,
    vdi_arguments,
    vif_arguments,
    vm_arguments,
)
from mover.store import Point, PointDisk, Store
from protocol.arena import Arena
from protocol.errors import XapiError
from protocol.tasks import task_group
from protocol.xapi import Pool, Transfers

_SLOTS = 24
_DISKS_AT_ONCE = 4
_BLOCKED = ("start", "start_on", "resume", "resume_on")


async def create_vm(
    store: Store, point: Point, saved: VmMetadata, plan: Plan, pool: Pool, transfers: Transfers, made: Made, emit: Emit
) -> str:
    """Make the VM with its disks, interfaces and TPM; its ref. It cannot be started, and is not called as it should."""
    image = await _make_image(saved, plan, pool, made)
    vm = await _make_record(saved, plan, pool, made, image)
    await block_start(pool, vm)
    if image is not None and await pool.call("VM.get_power_state", vm) != "Suspended":
        message = "the pool makes no suspended VMs of these records: the VM is restored without its memory"
        emit(Note(level="warning", vm=point.record.vm_uuid, message=message))
        await destroy_vdi(pool, image)
        made.vdis.remove(image)
        image = None
    # What the pool may refuse comes before the content, which can take hours.
    await _set_bios_strings(pool, saved, vm, emit)
    await _make_vtpms(pool, saved, vm, emit)
    for vif in sorted(saved.vifs.values(), key=lambda vif: int(vif["device"])):
        arguments = vif_arguments(vif, vm, plan.networks[vif["network"]], new_mac=plan.new_macs)
        await pool.call("VIF.create", arguments)
    vdis = await _make_disks(saved, plan, pool, vm, made, point, emit)
    if plan.memory is not None and image is not None:
        vdis.append((plan.memory, image))
    await _fill(store, point, vdis, transfers, emit)
    return vm


async def block_start(pool: Pool, vm: str) -> None:
    """Nobody is to start a VM that is not whole."""
    for operation in _BLOCKED:
        await pool.call("VM.add_to_blocked_operations", vm, operation, "a restore is not finished")


async def _make_record(saved: VmMetadata, plan: Plan, pool: Pool, made: Made, image: str | None) -> str:
    """The VM without its devices (a ref): suspended if there is an `image` (a ref) of its memory and the pool can."""
    arguments = vm_arguments(saved.vm, f"[restoring] {plan.name}", new_macs=plan.new_macs)
    asleep = suspended_arguments(saved.suspended, image) if saved.suspended and image else {}
    try:
        return await make_vm(pool, made, arguments | asleep)
    except XapiError as error:
        if not asleep or error.code != "VM_BAD_POWER_STATE":
            raise
        return await make_vm(pool, made, arguments)


async def _make_image(saved: VmMetadata, plan: Plan, pool: Pool, made: Made) -> str | None:
    """What the VM's memory goes into (a ref), if the restore has it: a VM is suspended from the start or never."""
    if plan.memory is None or saved.suspended is None:
        return None
    arguments = vdi_arguments(saved.suspended.vdi, plan.srs[plan.memory.vdi_uuid], plan.memory.size)
    return await make_vdi(pool, made, arguments | {"type": "suspend"})


async def _make_disks(
    saved: VmMetadata, plan: Plan, pool: Pool, vm: str, made: Made, point: Point, emit: Emit
) -> list[tuple[PointDisk, str]]:
    by_uuid = {disk.vdi_uuid: disk for disk in plan.disks}
    vdis: list[tuple[PointDisk, str]] = []
    for vbd in sorted(saved.vbds.values(), key=_position):
        if vbd["type"] == "CD":
            await _make_cd_drive(pool, vbd, vm, plan.discs.get(vbd["userdevice"]), point, emit)
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
        with naming(f"{point.record.vm_name}, disk {disk.position} ({disk.name}): "):
            vdi = await make_vdi(pool, made, vdi_arguments(vdi_record, plan.srs[disk.vdi_uuid], disk.size))
            await pool.call("VBD.create", vbd_arguments(vbd, vm, vdi))
        vdis.append((disk, vdi))
    return vdis


def _position(vbd: Record) -> tuple[int, str]:
    """What to sort drives by: most positions are numbers, and a pool takes names of devices, too ("xvda")."""
    return len(vbd["userdevice"]), vbd["userdevice"]


async def _make_cd_drive(pool: Pool, saved: Record, vm: str, disc: str | None, point: Point, emit: Emit) -> None:
    """With the disc (a ref) in it that was there; a disc that the pool does not insert is no reason to fail."""
    try:
        await pool.call("VBD.create", vbd_arguments(saved, vm, disc))
    except XapiError as error:
        if disc is None:
            raise
        message = f"drive {saved['userdevice']} is without its disc: {error}"
        emit(Note(level="warning", vm=point.record.vm_uuid, message=message))
        await pool.call("VBD.create", vbd_arguments(saved, vm, None))


async def _fill(
    store: Store, point: Point, vdis: Sequence[tuple[PointDisk, str]], transfers: Transfers, emit: Emit
) -> None:
    """Write the content of each disk into its VDI (a ref), several at once."""
    arena = Arena(_SLOTS)
    room = asyncio.Semaphore(_DISKS_AT_ONCE)
    with ThreadPoolExecutor(max(os.cpu_count() or 2, store.readers), "restore") as executor:

        async def fill(disk: PointDisk, vdi: str) -> None:
            async with room:
                await import_disk(store, point, disk, transfers, vdi, arena, executor, emit)

        async with task_group() as group:
            for disk, vdi in vdis:
                group.create_task(fill(disk, vdi))


async def _make_vtpms(pool: Pool, saved: VmMetadata, vm: str, emit: Emit) -> None:
    for ref, record in saved.vtpms.items():
        vtpm = await pool.call("VTPM.create", vm, bool(record.get("is_unique", False)))
        contents = saved.vtpm_contents.get(ref)
        if contents:
            await pool.call("VTPM.set_contents", vtpm, contents)
        else:
            emit(Note(level="warning", message="the TPM's contents were not saved; the new TPM is blank"))


async def _set_bios_strings(pool: Pool, saved: VmMetadata, vm: str, emit: Emit) -> None:
    """VM.create does not take them. A VM runs without, too."""

    def warn(message: str) -> None:
        emit(Note(level="warning", vm=saved.vm["uuid"], message=message))

    if lost := lost_bios_strings(saved.vm):
        warn(f"the API does not set the BIOS strings {', '.join(lost)}: --via xva brings them back")
    strings = bios_strings(saved.vm)
    if strings:
        try:
            await pool.call("VM.set_bios_strings", vm, strings)
        except XapiError as error:
            warn(f"the BIOS strings are not restored: {error}")
