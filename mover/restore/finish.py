"""The last of a restore, whichever way it went: what ties the VM to the pool around it, its name, its blocks."""

from __future__ import annotations

from mover.backup.metadata import VmMetadata
from mover.events import Emit, Note
from mover.restore.plan import Plan
from mover.restore.vm_record import NULL, Record
from protocol.errors import XapiError
from protocol.xapi import Pool

# Fields of a disk that it could not have while it was written to, and what sets them.
_OF_DISKS = {"read_only": "VDI.set_read_only", "allow_caching": "VDI.set_allow_caching"}


async def finish(
    pool: Pool, saved: VmMetadata, plan: Plan, vm: str, vdis: dict[str, str], emit: Emit, *, template: bool
) -> None:
    """Complete the VM (a ref) with its `vdis` (refs by position). In the end it has its name and can be started."""
    await _settle_disks(pool, saved, vdis)
    await _settle_home(pool, saved.vm, vm)
    if not template:
        await _settle_availability(pool, saved.vm, vm, emit)
    _tell_what_is_left(saved, plan, emit)
    await pool.call("VM.set_name_label", vm, plan.name)
    await pool.call("VM.set_is_a_template", vm, template)
    await pool.call("VM.set_blocked_operations", vm, saved.vm.get("blocked_operations") or {})


async def _settle_disks(pool: Pool, saved: VmMetadata, vdis: dict[str, str]) -> None:
    for vbd in saved.vbds.values():
        disk, made = saved.vdis.get(vbd["VDI"], {}), vdis.get(vbd["userdevice"])
        for field, setter in _OF_DISKS.items():
            if made is not None and disk.get(field):
                await pool.call(setter, made, True)


async def _settle_home(pool: Pool, saved: Record, vm: str) -> None:
    """The host and the SR that it prefers, if they are still there: on another pool, nothing has these references."""
    for field, kind in (("affinity", "host"), ("suspend_SR", "SR")):
        ref = saved.get(field, NULL)
        if ref != NULL and ref in await pool.call(f"{kind}.get_all"):
            await pool.call(f"VM.set_{field}", vm, ref)


async def _settle_availability(pool: Pool, saved: Record, vm: str, emit: Emit) -> None:
    """Whether high availability restarts it. That it always runs is set by its start."""
    priority = saved.get("ha_restart_priority") or ""
    if not priority:
        return
    try:
        await pool.call("VM.set_ha_restart_priority", vm, priority)
    except XapiError as error:
        message = f"its ha_restart_priority of {priority} could not be set: {error}"
        emit(Note(level="warning", vm=saved["uuid"], message=message))


def _tell_what_is_left(saved: VmMetadata, plan: Plan, emit: Emit) -> None:
    """What a person has to do: the pool offers no way, or does not have what it takes."""
    vm = saved.vm["uuid"]
    for vbd in saved.vbds.values():
        disc = saved.vdis.get(vbd["VDI"]) if vbd["type"] == "CD" else None
        if disc is not None and vbd["userdevice"] not in plan.discs:
            message = f"the disc {disc['name_label']} is not on the pool: drive {vbd['userdevice']} is empty"
            emit(Note(level="info", vm=vm, message=message))
    for vif in saved.vifs.values():
        for kind in ("ipv4", "ipv6"):
            if vif.get(f"{kind}_configuration_mode") == "Static":
                emit(Note(level="info", vm=vm, message=_address(vif, kind)))


def _address(vif: Record, kind: str) -> str:
    """The pool takes an address only while the guest's agent runs (xen-api ocaml/xapi/xapi_vif.ml)."""
    address = ", ".join(vif[f"{kind}_addresses"])
    return (
        f"interface {vif['device']} had the address {address} by the pool: once the VM runs, "
        f"xe vif-configure-{kind} uuid=… mode=static address={address} gateway={vif[f'{kind}_gateway']}"
    )
