"""Snapshots of VMs, and what is made from them.

Source: xen-api ocaml/xapi/xapi_vm_snapshot.ml, xapi_vm_clone.ml, ocaml/idl/datamodel_vm.ml.
"""

from __future__ import annotations

import random
import uuid as uuids
from collections.abc import Callable

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.values import EPOCH, NULL, Record, now, stamp
from mover.simulator.vdi import clone_disk, destroy_disk, snapshot_disk, storage
from mover.simulator.vm import halt
from mover.simulator.vm_rules import assert_allowed
from mover.simulator.vtpm import copy_vtpm

_SUSPEND_IMAGE = 2 << 20
_RESET = {
    "blocked_operations": {},
    "current_operations": {},
    "ha_always_run": False,
    "appliance": NULL,
    "protection_policy": NULL,
    "snapshot_schedule": NULL,
    "order": 0,
    "start_delay": 0,
    "shutdown_delay": 0,
    "suspend_SR": NULL,
    "suspend_VDI": NULL,
    "resident_on": NULL,
    "domid": -1,
    "is_default_template": False,
    "snapshots": [],
    "children": [],
    "VBDs": [],
    "VIFs": [],
    "VTPMs": [],
    "guest_metrics": NULL,
}
_DiskCopy = Callable[[Pool, str], str]


class VmSnapshotCalls:
    """VM.snapshot with three parameters, as since 21.4.0."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "VM.snapshot(vm: VM ref, new_name: string, ignore_vdis: VDI ref set = []) -> VM ref",
        errors="VM_BAD_POWER_STATE OPERATION_NOT_ALLOWED",
    )
    async def snapshot(self, context: Context, vm: str, new_name: str, ignore_vdis: list[str]) -> str:
        return await snapshot_vm(self._pool, context, vm, new_name, ignore_vdis)


class OldVmSnapshotCalls:
    """VM.snapshot with two parameters."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("VM.snapshot(vm: VM ref, new_name: string) -> VM ref", errors="VM_BAD_POWER_STATE OPERATION_NOT_ALLOWED")
    async def snapshot(self, context: Context, vm: str, new_name: str) -> str:
        return await snapshot_vm(self._pool, context, vm, new_name, [])


class QuiesceCalls:
    """What went away with API 2.14."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "VM.snapshot_with_quiesce(vm: VM ref, new_name: string) -> VM ref",
        errors="VM_BAD_POWER_STATE VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED VM_SNAPSHOT_WITH_QUIESCE_FAILED",
    )
    async def snapshot_with_quiesce(self, context: Context, vm: str, new_name: str) -> str:
        """Needs an agent in the guest, which is seen in its guest metrics."""
        assert_allowed(self._pool.database, vm, "snapshot_with_quiesce")
        metrics = self._pool.database.find("VM_guest_metrics", self._pool.database.get("VM", vm)["guest_metrics"])
        if metrics is None or "feature-snapshot" not in metrics["other"]:
            raise Failure("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", vm, "VSS is not supported")
        return await snapshot_vm(self._pool, context, vm, new_name, [], quiesced=True)


class RemovedQuiesceCalls:
    """What is left of it: the name."""

    @call("VM.snapshot_with_quiesce(vm: VM ref, new_name: string) -> VM ref", removed=True)
    def snapshot_with_quiesce(self, context: Context, vm: str, new_name: str) -> None:
        """The dispatcher answers before this is reached."""


class VmCopyCalls:
    """Checkpoint, revert and clone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "VM.checkpoint(vm: VM ref, new_name: string) -> VM ref",
        errors="VM_BAD_POWER_STATE OPERATION_NOT_ALLOWED LICENCE_RESTRICTION",
    )
    async def checkpoint(self, context: Context, vm: str, new_name: str) -> str:
        """A snapshot with memory, of a VM that has some. One that is paused is taken without."""
        pool = self._pool
        record = assert_allowed(pool.database, vm, "checkpoint")
        if (
            pool.database.get("pool", pool.database.refs("pool")[0])["restrictions"].get("restrict_checkpoint")
            != "false"
        ):
            raise Failure("LICENCE_RESTRICTION", "Checkpoint")
        async with pool.busy.hold(context, "VM", vm, "checkpoint"):
            image = NULL if record["power_state"] == "Paused" else suspend_image(pool, vm)
            snapshot = copy_vm(pool, vm, new_name, snapshot_disk, [], _snapshot_fields(pool, vm, False))
            if image != NULL:
                booted = {
                    "last_booted_record": record["last_booted_record"] or _metadata(record),
                    "last_boot_CPU_flags": dict(record["last_boot_CPU_flags"]) or {"vendor": "GenuineIntel"},
                }
                pool.database.update("VM", snapshot, power_state="Suspended", suspend_VDI=image, **booted)
            return snapshot

    @call("VM.revert(snapshot: VM ref) -> void", errors="VM_BAD_POWER_STATE OPERATION_NOT_ALLOWED VM_REVERT_FAILED")
    async def revert(self, context: Context, snapshot: str) -> None:
        """The VM's disks are destroyed; clones of the snapshot's, with new UUIDs, take their place."""
        pool = self._pool
        record = assert_allowed(pool.database, snapshot, "revert")
        vm = record["snapshot_of"]
        if not pool.database.exists("VM", vm):
            raise Failure("VM_REVERT_FAILED", snapshot, vm)
        async with pool.busy.hold(context, "VM", vm, "reverting"):
            revert_vm(pool, vm, record)

    @call("VM.clone(vm: VM ref, new_name: string) -> VM ref", errors="VM_BAD_POWER_STATE OPERATION_NOT_ALLOWED")
    async def clone(self, context: Context, vm: str, new_name: str) -> str:
        pool = self._pool
        record = assert_allowed(pool.database, vm, "clone")
        async with pool.busy.hold(context, "VM", vm, "clone"):
            fields: Record = {
                "is_a_snapshot": False,
                "snapshot_of": NULL,
                "snapshot_time": EPOCH,
                "is_a_template": record["is_a_template"] and not record["is_a_snapshot"],
                "parent": NULL,
                "other_config": {**record["other_config"], "mac_seed": str(uuids.uuid4())},
            }
            return copy_vm(pool, vm, new_name, clone_disk, [], fields)


async def snapshot_vm(
    pool: Pool, context: Context, vm: str, name: str, ignored: list[str], quiesced: bool = False
) -> str:
    """Snapshot a VM in any power state: its disks one after another, so not all at one moment."""
    assert_allowed(pool.database, vm, "snapshot")
    async with pool.busy.hold(context, "VM", vm, "snapshot"):
        snapshot = copy_vm(pool, vm, name, snapshot_disk, ignored, _snapshot_fields(pool, vm, quiesced))
        pool.database.update("VM", vm, parent=snapshot)
        return snapshot


def _snapshot_fields(pool: Pool, vm: str, quiesced: bool) -> Record:
    record = pool.database.get("VM", vm)
    return {
        "is_a_template": True,
        "is_a_snapshot": True,
        "snapshot_of": vm,
        "snapshot_time": now(),
        "parent": record["parent"],
        "snapshot_info": {
            "power-state-at-snapshot": record["power_state"],
            "disk-snapshot-type": "quiesced" if quiesced else "crash_consistent",
        },
        "snapshot_metadata": _metadata(record),
    }


def _metadata(record: Record) -> str:
    """The original's record as text, in the manner of the servers: nested pairs in brackets."""
    pairs = (f"('{name}' '{value}')" for name, value in record.items() if isinstance(value, str | int) and value != "")
    return f"({' '.join(pairs)} ('captured' '{stamp(now())}'))"


def copy_vm(pool: Pool, vm: str, name: str, copy_disk: _DiskCopy, ignored: list[str], fields: Record) -> str:
    """Copy a VM with its devices; what was made of the disks is destroyed again if one fails."""
    database = pool.database
    record = database.get("VM", vm)
    disks = _disks(pool, record, ignored)
    made: list[str] = []
    try:
        for _, vbd in disks:
            made.append(vbd["VDI"] if vbd["empty"] else copy_disk(pool, vbd["VDI"]))
    except Failure:
        for vdi in made:
            if vdi != NULL:
                destroy_disk(pool, vdi)
        raise
    skipped = ("uuid", "allowed_operations")
    plain = {field: _copied(value) for field, value in record.items() if field not in skipped}
    copy = database.create("VM", plain | _RESET | {"name_label": name, "power_state": "Halted"} | fields)
    for (_, vbd), vdi in zip(disks, made, strict=True):
        _copy_vbd(pool, copy, vbd, vdi)
    _copy_interfaces(pool, record, copy)
    return copy


def _disks(pool: Pool, record: Record, ignored: list[str]) -> list[tuple[str, Record]]:
    vbds = [(vbd, pool.database.get("VBD", vbd)) for vbd in record["VBDs"]]
    kept = [(ref, vbd) for ref, vbd in vbds if (vbd["empty"] or vbd["type"] != "CD") and vbd["VDI"] not in ignored]
    return sorted(kept, key=lambda pair: pair[1]["userdevice"])


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, list | dict) else value


def _copy_vbd(pool: Pool, vm: str, vbd: Record, vdi: str) -> str:
    kept = (
        "userdevice bootable mode type unpluggable empty other_config qos_algorithm_type qos_algorithm_params".split()
    )
    fields: Record = {name: _copied(vbd[name]) for name in kept}
    if vbd["type"] == "Disk":
        fields["other_config"] = {**vbd["other_config"], "owner": ""}
    return pool.database.create("VBD", fields | {"VM": vm, "VDI": vdi})


def _copy_interfaces(pool: Pool, record: Record, copy: str) -> None:
    for vif in record["VIFs"]:
        fields = pool.database.get("VIF", vif)
        skipped = ("uuid", "currently_attached", "current_operations")
        plain = {name: _copied(value) for name, value in fields.items() if name not in skipped}
        pool.database.create("VIF", plain | {"VM": copy})
    for vtpm in record["VTPMs"]:
        copy_vtpm(pool, vtpm, copy)


def suspend_image(pool: Pool, vm: str) -> str:
    """A snapshot of a VDI with the memory of a VM, in the SR of its first disk; what it was taken of is gone."""
    record = pool.database.get("VM", vm)
    disks = [vbd for _, vbd in _disks(pool, record, []) if not vbd["empty"]]
    if not disks:
        raise Failure("VM_NO_SUSPEND_SR", vm)
    sr = pool.database.get("VDI", disks[0]["VDI"])["SR"]
    uuid = str(uuids.uuid4())
    storage(lambda: pool.disks.create(uuid, _SUSPEND_IMAGE))
    storage(lambda: pool.disks.write(uuid, 0, random.Random(uuid).randbytes(_SUSPEND_IMAGE // 2)))
    fields = {
        "SR": sr,
        "virtual_size": _SUSPEND_IMAGE,
        "type": "suspend",
        "is_a_snapshot": True,
        "snapshot_time": now(),
        "name_label": "Suspend image",
        "location": uuid,
    }
    return pool.database.create("VDI", fields, uuid=uuid)


def revert_vm(pool: Pool, vm: str, snapshot: Record) -> None:
    """Bring a VM back. Disks change identity: `snapshot_of` of the other snapshots follows."""
    database = pool.database
    halt(pool, vm)
    pairs = [(vbd, clone_disk(pool, vbd["VDI"])) for _, vbd in _disks(pool, snapshot, []) if not vbd["empty"]]
    for vbd in list(database.get("VM", vm)["VBDs"]):
        old = database.get("VBD", vbd)
        if old["type"] == "CD":
            continue
        database.destroy("VBD", vbd)
        if database.exists("VDI", old["VDI"]):
            _replace(pool, old["VDI"], pairs)
    for vbd, clone in pairs:
        database.update("VDI", clone, name_label=database.get("VDI", vbd["VDI"])["name_label"])
        _copy_vbd(pool, vm, vbd, clone)
    kept: tuple[str, ...] = ("name_description", "memory_static_min", "memory_static_max", "memory_dynamic_min")
    kept += ("memory_dynamic_max", "VCPUs_max", "VCPUs_at_startup", "platform", "HVM_boot_params", "NVRAM")
    database.update("VM", vm, **{name: snapshot[name] for name in kept})


def _replace(pool: Pool, old: str, pairs: list[tuple[Record, str]]) -> None:
    snapshots = list(pool.database.get("VDI", old)["snapshots"])
    for vbd, clone in pairs:
        if vbd["VDI"] in snapshots:
            for snapshot in snapshots:
                pool.database.update("VDI", snapshot, snapshot_of=clone)
    destroy_disk(pool, old)
