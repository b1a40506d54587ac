"""A VM onto a pool as one XVA; or as the XVA of its last full and what has changed since."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from mover.backup.metadata import VmMetadata
from mover.errors import NotFoundError, PoolError
from mover.events import Emit, Note
from mover.failure import naming
from mover.restore.create import block_start
from mover.restore.ova import describe
from mover.restore.plan import Plan
from mover.restore.progress import RestoreProgress
from mover.restore.undo import Made, noted
from mover.restore.vhd import vhd_stream
from mover.restore.vm_record import Record, vif_arguments, vm_other_config
from mover.restore.xva import Content, xva_stream
from mover.store import DiskReader, Point, PointDisk, Store
from protocol.arena import Arena
from protocol.errors import XapiError
from protocol.extent import Extent, total
from protocol.tasks import in_thread, task_group
from protocol.vhd import MAX_SIZE
from protocol.xapi import Pool, Transfers

_SLOTS = 24
_DISKS_AT_ONCE = 4


@dataclass(frozen=True)
class _Change:
    """What is to be written over a disk that was imported with the content of an earlier point."""

    reader: DiskReader
    extents: list[Extent]
    parent: str
    progress: RestoreProgress


async def import_vm(
    store: Store,
    point: Point,
    saved: VmMetadata,
    plan: Plan,
    pool: Pool,
    transfers: Transfers,
    made: Made,
    emit: Emit,
    *,
    replay: bool,
) -> str:
    """Make the VM with its disks, interfaces and TPM; its ref. It cannot be started, and is not called as it should.

    It keeps its UUID if that is not in use. With `replay` the disks come from the point's last full, and what has
    changed since is then written over them. Raises `NotFoundError`, `PoolError` and the like, `StoreDamagedError`.
    """
    earlier = _last_full(store, point, plan.disks) if replay else {}
    ova, ids = describe(
        saved,
        plan.disks,
        f"[restoring] {plan.name}",
        new_macs=plan.new_macs,
        network_names=await _names(pool, plan.networks),
    )
    arena = Arena(_SLOTS)
    with ThreadPoolExecutor(max(os.cpu_count() or 2, store.readers), "restore") as executor:
        contents: dict[str, Content] = {}
        progress: dict[str, RestoreProgress] = {}
        changes: dict[str, _Change] = {}
        for disk in plan.disks:
            content, change = await in_thread(executor, _split, store, point, disk, earlier.get(disk.position), emit)
            contents[ids[disk.position]] = content
            progress[ids[disk.position]] = RestoreProgress(point.record.vm_uuid, disk, total(content.extents), emit)
            if change is not None:
                changes[disk.position] = change

        async def upload(*, restore: bool) -> list[str]:
            length, body = xva_stream(ova, contents, progress, arena, executor)
            async with aclosing(body):
                return await transfers.import_vm(sr=sr, length=length, body=body, restore=restore)

        sr = _one_sr(plan, point, emit)
        refs = await _keeping_identity(upload, plan, point, emit)
        made.vm = refs[0] if refs else None
        vm = _only(refs, point)
        # First of all: VM.destroy leaves the disks, and then nothing says which they were.
        finding = disks_by_position(pool, vm)
        vdis = await noted(finding, lambda found: made.vdis.extend(found.values()), made, f"the disks of {plan.name}")
        await block_start(pool, vm)
        await _apply(point, changes, vdis, transfers, arena, executor)
    await _settle_interfaces(pool, saved, plan, vm)
    await _settle_drives(pool, plan, vm, point, emit)
    await _settle_other_config(pool, saved, plan, vm)
    return vm


async def disks_by_position(pool: Pool, vm: str) -> dict[str, str]:
    """The VDIs of a VM (refs) by userdevice; CD drives have none."""
    found: dict[str, str] = {}
    for vbd in await pool.call("VM.get_VBDs", vm):
        record: Record = await pool.call("VBD.get_record", vbd)
        if record["type"] != "CD" and not record["empty"]:
            found[record["userdevice"]] = record["VDI"]
    return found


class _Upload(Protocol):
    async def __call__(self, *, restore: bool) -> list[str]: ...


async def _keeping_identity(upload: _Upload, plan: Plan, point: Point, emit: Emit) -> list[str]:
    """Keep UUIDs where they are free. A seed that something else has, a snapshot of old for example, forbids it."""
    if plan.twin or plan.new_macs:
        return await upload(restore=False)
    try:
        return await upload(restore=True)
    except XapiError as error:
        if error.code != "DUPLICATE_MAC_SEED":
            raise
        message = f"the VM gets a new UUID, because something on the pool has its MAC seed ({error})"
        emit(Note(level="warning", vm=point.record.vm_uuid, message=message))
        return await upload(restore=False)


def _only(refs: list[str], point: Point) -> str:
    if len(refs) != 1:
        raise PoolError(f"{point.record.vm_name}: the pool made {len(refs)} VMs of one", "look for them, by name")
    return refs[0]


async def _names(pool: Pool, networks: Mapping[str, str]) -> dict[str, str]:
    """By saved network, the name of the one that stands in for it: the server matches them by name."""
    return {saved: str(await pool.call("network.get_name_label", ref)) for saved, ref in networks.items()}


def _one_sr(plan: Plan, point: Point, emit: Emit) -> str:
    """An import puts all disks into one SR."""
    srs = [plan.srs[disk.vdi_uuid] for disk in plan.disks]
    if not srs:
        raise NotFoundError(f"the point {point.id} of {point.record.vm_name} has no disks to import", "use --via api")
    if len(set(srs)) > 1:
        message = "an XVA is imported into one SR, and the disks come from several: all go to that of the first one"
        emit(Note(level="warning", vm=point.record.vm_uuid, message=message))
    return srs[0]


# -- what was in the last full, and what has changed since ------------------------------------------------------------


def _last_full(store: Store, point: Point, disks: list[PointDisk]) -> dict[str, PointDisk]:
    """By position, the disks of the newest point before this one that was read in full and is still there."""
    record = point.record
    for other in reversed(store.readable_points()[0]):
        if other.record.vm_uuid != record.vm_uuid or other.place >= point.place:
            continue
        by_uuid = {disk.vdi_uuid: disk for disk in other.record.disks if disk.mode == "full"}
        if all(disk.vdi_uuid in by_uuid for disk in disks):
            return {disk.position: by_uuid[disk.vdi_uuid] for disk in disks if disk.mode != "full"}
    if all(disk.mode == "full" for disk in disks):
        return {}
    raise NotFoundError(
        f"the full that the point {point.id} of {record.vm_name} builds on is not in the store any more",
        "--via xva restores the point alone: nothing of it is missing",
    )


def _split(
    store: Store, point: Point, disk: PointDisk, earlier: PointDisk | None, emit: Emit
) -> tuple[Content, _Change | None]:
    """What of a disk goes into the XVA, and what is written over it then."""
    reader = store.disk(disk.root, disk.size)
    if earlier is None or earlier.size != disk.size or disk.size > MAX_SIZE:
        return Content(reader, list(reader.extents())), None
    base = store.disk(earlier.root, earlier.size)
    extents = list(reader.diff(earlier.root, earlier.size))
    progress = RestoreProgress(point.record.vm_uuid, disk, total(extents), emit)
    return Content(base, list(base.extents())), _Change(reader, extents, earlier.vdi_uuid, progress)


async def _apply(
    point: Point,
    changes: Mapping[str, _Change],
    vdis: Mapping[str, str],
    transfers: Transfers,
    arena: Arena,
    executor: Executor,
) -> None:
    room = asyncio.Semaphore(_DISKS_AT_ONCE)

    async def one(position: str, change: _Change) -> None:
        length, body = vhd_stream(
            change.reader,
            change.extents,
            arena,
            executor,
            change.progress,
            parent=(UUID(change.parent), f"{change.parent}.vhd"),
        )
        with naming(f"{point.record.vm_name}, disk {position}: "):
            async with room, aclosing(body):
                await transfers.import_vdi(vdis[position], format="vhd", length=length, body=body)
        change.progress.finish()

    async with task_group() as group:
        for position, change in changes.items():
            group.create_task(one(position, change))


# -- what an import decides by itself ---------------------------------------------------------------------------------


async def _settle_interfaces(pool: Pool, saved: VmMetadata, plan: Plan, vm: str) -> None:
    """Put right what the server chose differently: networks of equal names, MAC addresses beside the original VM."""
    wanted = {vif["device"]: vif for vif in saved.vifs.values()}
    for ref in await pool.call("VM.get_VIFs", vm):
        vif: Record = await pool.call("VIF.get_record", ref)
        of = wanted.get(vif["device"])
        if of is None:
            continue
        network = plan.networks[of["network"]]
        if vif["network"] == network and (plan.new_macs or vif["MAC"] == of["MAC"]):
            continue
        await pool.call("VIF.destroy", ref)
        await pool.call("VIF.create", vif_arguments(of, vm, network, new_mac=plan.new_macs))


async def _settle_drives(pool: Pool, plan: Plan, vm: str, point: Point, emit: Emit) -> None:
    """An import leaves CD drives empty. A disc that the pool does not insert is no reason to fail."""
    for ref in await pool.call("VM.get_VBDs", vm) if plan.discs else ():
        vbd: Record = await pool.call("VBD.get_record", ref)
        if vbd["type"] == "CD" and vbd["empty"] and vbd["userdevice"] in plan.discs:
            try:
                await pool.call("VBD.insert", ref, plan.discs[vbd["userdevice"]])
            except XapiError as error:
                message = f"drive {vbd['userdevice']} is without its disc: {error}"
                emit(Note(level="warning", vm=point.record.vm_uuid, message=message))


async def _settle_other_config(pool: Pool, saved: VmMetadata, plan: Plan, vm: str) -> None:
    """An import notes down its task there, and makes a new MAC seed where it does not keep the UUID."""
    wanted = vm_other_config(saved.vm, new_macs=plan.new_macs)
    if plan.new_macs:
        made: dict[str, str] = await pool.call("VM.get_other_config", vm)
        wanted |= {key: value for key, value in made.items() if key == "mac_seed"}
    await pool.call("VM.set_other_config", vm, wanted)
