"""The last of a restore, whichever way it went: what ties the VM to the pool around it, its name, its blocks."""

from __future__ import annotations

from collections.abc import Iterator

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
    """Complete the VM (a ref) with its `vdis` (refs by position). In the end it has its name and can be started.

    What the pool refuses of what it can do without is a warning: all its content is there by now.
    """
    for setter, arguments in [*_of_disks(saved, vdis), *await _of_home(pool, saved.vm, vm)]:
        await _set(pool, saved, emit, setter, *arguments)
    priority = saved.vm.get("ha_restart_priority") or ""
    if priority and not template:
        # That it always runs is set by its start.
        await _set(pool, saved, emit, "VM.set_ha_restart_priority", vm, priority)
    _tell_what_is_left(saved, plan, emit)
    await pool.call("VM.set_name_label", vm, plan.name)
    await pool.call("VM.set_is_a_template", vm, template)
    await pool.call("VM.set_blocked_operations", vm, saved.vm.get("blocked_operations") or {})


async def _set(pool: Pool, saved: VmMetadata, emit: Emit, setter: str, *arguments: object) -> None:
    try:
        await pool.call(setter, *arguments)
    except XapiError as error:
        emit(Note(level="warning", vm=saved.vm["uuid"], message=f"a setting is not restored: {error}"))


def _of_disks(saved: VmMetadata, vdis: dict[str, str]) -> Iterator[tuple[str, tuple[object, ...]]]:
    for vbd in saved.vbds.values():
        disk, made = saved.vdis.get(vbd["VDI"], {}), vdis.get(vbd["userdevice"])
        for field, setter in _OF_DISKS.items():
            if made is not None and disk.get(field):
                yield setter, (made, True)


async def _of_home(pool: Pool, saved: Record, vm: str) -> list[tuple[str, tuple[object, ...]]]:
    """The host and the SR that it prefers, if they are still there: on another pool, nothing has these references."""
    found: list[tuple[str, tuple[object, ...]]] = []
    for field, kind in (("affinity", "host"), ("suspend_SR", "SR")):
        ref = saved.get(field, NULL)
        if ref != NULL and ref in await pool.call(f"{kind}.get_all"):
            found.append((f"VM.set_{field}", (vm, ref)))
    return found


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
