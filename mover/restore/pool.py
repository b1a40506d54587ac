"""A VM of a restore point onto a pool: its record, its disks, its network interfaces, its TPM."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mover.backup.metadata import VmMetadata, decode
from mover.events import Emit, Note
from mover.failure import naming
from mover.restore.create import create_vm
from mover.restore.finish import finish
from mover.restore.import_vm import disks_by_position, import_vm
from mover.restore.options import RestoreOptions, Via
from mover.restore.plan import Plan, plan_restore
from mover.restore.undo import undone_on_failure
from mover.store import Point, Store
from protocol.xapi import Pool, Transfers


@dataclass(frozen=True)
class RestoredVm:
    """What a restore made: the new VM and, by position, its new VDIs (refs)."""

    ref: str
    uuid: str
    name: str
    vdis: dict[str, str]


async def restore_to_pool(
    store: Store, point: Point, pool: Pool, transfers: Transfers, options: RestoreOptions, emit: Emit
) -> RestoredVm:
    """Make the VM of `point` anew on `pool`.

    If a VM with its UUID or its MAC addresses is there, the new one gets new MAC addresses and a name that tells them
    apart; otherwise it gets its original configuration, MACs included. `options` override both. The new VM cannot be
    started until it is whole; if anything fails, all that was made is destroyed again, unless it is to be kept. Raises
    `NotFoundError` for networks, SRs or disks that do not exist, before anything is made; `StoreDamagedError`;
    `PoolError` and the like, naming the VM.
    """
    with naming(f"{point.record.vm_name}: "):
        return await _restore(store, point, pool, transfers, options, emit)


async def _restore(
    store: Store, point: Point, pool: Pool, transfers: Transfers, options: RestoreOptions, emit: Emit
) -> RestoredVm:
    saved = decode(store.get_blob(point.record.metadata))
    plan = await plan_restore(point, saved, pool, options)
    _tell_of_twin(plan, point, emit)
    via = options.via or _usual(point, plan)
    if plan.memory is not None and (why := _no_memory(saved, via, options)):
        emit(Note(level="warning", vm=point.record.vm_uuid, message=f"the VM's memory is not restored: {why}"))
        plan = replace(plan, memory=None)
    async with undone_on_failure(pool, emit, keep=options.keep_partial) as made:
        if via == "api":
            vm = await create_vm(store, point, saved, plan, pool, transfers, made, emit)
        else:
            vm = await import_vm(store, point, saved, plan, pool, transfers, made, emit, replay=via == "replay")
        vdis = await disks_by_position(pool, vm)
        await finish(pool, saved, plan, vm, vdis, emit, template=options.template)
    return RestoredVm(vm, await pool.call("VM.get_uuid", vm), plan.name, vdis)


def _no_memory(saved: VmMetadata, via: Via, options: RestoreOptions) -> str:
    """Why the VM's memory cannot come back; empty if it can."""
    if options.template:
        return "a template has none"
    if via != "api":
        return f"the way {via} cannot carry it; --via api does"
    if saved.vtpms:
        # VTPM.create wants it halted (xen-api ocaml/xapi/xapi_vtpm.ml), and a VM is suspended from the start or never.
        return "the VM has a TPM, which the pool gives to no VM that is suspended"
    return ""


def _tell_of_twin(plan: Plan, point: Point, emit: Emit) -> None:
    if not plan.twin:
        return
    if plan.new_macs:
        message = f"{plan.twin}: the restored VM gets new MAC addresses"
        emit(Note(level="info", vm=point.record.vm_uuid, message=message))
    else:
        message = f"{plan.twin}: the restored VM gets the saved MAC addresses all the same; run only one of the two"
        emit(Note(level="warning", vm=point.record.vm_uuid, message=message))


def _usual(point: Point, plan: Plan) -> Via:
    """The way back is that of the backup, unless that cannot carry memory."""
    return "xva" if point.record.strategy == "xva" and plan.memory is None else "api"
