"""VMs: creating, destroying, power, settings.

Source: xen-api ocaml/xapi/xapi_vm.ml, xapi_vm_helpers.ml, ocaml/idl/datamodel_vm.ml.
"""

from __future__ import annotations

import uuid as uuids
from contextlib import suppress

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.values import NULL, Record
from mover.simulator.vdi import constructor_fields, destroy_disk
from mover.simulator.vm_rules import assert_allowed

# Accepted by the constructor and dropped: they are set afterwards or never.
_IGNORED = ("blocked_operations", "protection_policy", "is_snapshot_from_vmpp", "snapshot_schedule", "is_vmss_snapshot")
_SUSPENDED_NEEDS = ("suspend_VDI", "last_booted_record", "last_boot_CPU_flags")
# What a VM without any has from its first start on (xen-api ocaml/xapi-consts/constants.ml).
GENERIC_BIOS_STRINGS = {
    "bios-vendor": "Xen",
    "bios-version": "",
    "system-manufacturer": "Xen",
    "system-product-name": "HVM domU",
    "system-version": "",
    "system-serial-number": "",
    "baseboard-manufacturer": "",
    "baseboard-product-name": "",
    "baseboard-version": "",
    "baseboard-serial-number": "",
    "baseboard-asset-tag": "",
    "baseboard-location-in-chassis": "",
    "enclosure-asset-tag": "",
    "hp-rombios": "",
    "oem-1": "Xen",
    "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d",
}
_BIOS_KEYS = GENERIC_BIOS_STRINGS.keys() - {"hp-rombios", "oem-1", "oem-2"}


class VmCalls:
    """The calls of VM except for snapshots."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._database = pool.database

    @call("VM.create(args: VM record) -> VM ref", errors="VM_BAD_POWER_STATE")
    def create(self, context: Context, args: Record) -> str:
        """Always a new UUID; some fields are taken and ignored; a MAC seed is added where there is none."""
        fields = constructor_fields(self._pool, "VM", args)
        for name in _IGNORED:
            fields.pop(name, None)
        if fields.get("power_state", "Halted") != "Halted" and not all(
            fields.get(name) not in (None, "", NULL, {}) for name in _SUSPENDED_NEEDS
        ):
            raise Failure("VM_BAD_POWER_STATE", NULL, "halted", "suspended")
        _check_memory(
            *(fields[f"memory_{name}"] for name in ("static_min", "dynamic_min", "dynamic_max", "static_max"))
        )
        fields["other_config"].setdefault("mac_seed", str(uuids.uuid4()))
        if fields.get("domain_type", "unspecified") == "unspecified":
            fields["domain_type"] = "hvm" if fields["HVM_boot_policy"] else "pv"
        return self._database.create("VM", fields)

    @call("VM.destroy(self: VM ref) -> void", errors="OPERATION_BLOCKED VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def destroy(self, context: Context, vm: str) -> None:
        """The record, its VBDs, VIFs and VTPMs. The disks stay."""
        async with self._pool.busy.hold(context, "VM", vm, "destroy"):
            destroy_vm(self._pool, vm)

    @call("VM.start(vm: VM ref, start_paused: bool, force: bool) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def start(self, context: Context, vm: str, start_paused: bool, force: bool) -> None:
        await self._start(context, vm, self._pool.master.ref, start_paused, "start")

    @call(
        "VM.start_on(vm: VM ref, host: host ref, start_paused: bool, force: bool) -> void",
        errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE",
    )
    async def start_on(self, context: Context, vm: str, host: str, start_paused: bool, force: bool) -> None:
        await self._start(context, vm, host, start_paused, "start_on")

    async def _start(self, context: Context, vm: str, host: str, paused: bool, operation: str) -> None:
        async with self._pool.busy.hold(context, "VM", vm, operation):
            record = assert_allowed(self._database, vm, operation)
            for vbd in record["VBDs"]:
                self._attach_for_start(vbd)
            for vif in record["VIFs"]:
                self._database.update("VIF", vif, currently_attached=True)
            domid = 1 + max(r["domid"] for _, r in self._database.items("VM"))
            state = "Paused" if paused else "Running"
            self._database.update("VM", vm, power_state=state, resident_on=host, domid=domid)

    def _attach_for_start(self, vbd: str) -> None:
        record = self._database.get("VBD", vbd)
        if record["empty"]:
            self._database.update("VBD", vbd, currently_attached=True)
            return
        self._database.get("VDI", record["VDI"])
        if any(other["mode"] == "RW" for other in self._pool.attached(record["VDI"])):
            raise Failure("VDI_IN_USE", record["VDI"], "attach")
        self._pool.plug(vbd, True)

    @call("VM.clean_shutdown(vm: VM ref) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def clean_shutdown(self, context: Context, vm: str) -> None:
        await self._stop(context, vm, "clean_shutdown")

    @call("VM.hard_shutdown(vm: VM ref) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def hard_shutdown(self, context: Context, vm: str) -> None:
        await self._stop(context, vm, "hard_shutdown")

    @call("VM.shutdown(vm: VM ref) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def shutdown(self, context: Context, vm: str) -> None:
        await self._stop(context, vm, "hard_shutdown")

    async def _stop(self, context: Context, vm: str, operation: str) -> None:
        async with self._pool.busy.hold(context, "VM", vm, operation):
            assert_allowed(self._database, vm, operation)
            halt(self._pool, vm)

    @call("VM.resume(vm: VM ref, start_paused: bool, force: bool) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    async def resume(self, context: Context, vm: str, start_paused: bool, force: bool) -> None:
        """The VM runs on from its memory, which is destroyed."""
        image = self._database.get("VM", vm)["suspend_VDI"]
        await self._start(context, vm, self._pool.master.ref, start_paused, "resume")
        self._database.update("VM", vm, suspend_VDI=NULL)
        if self._database.exists("VDI", image):
            destroy_disk(self._pool, image)

    @call("VM.pause(vm: VM ref) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    def pause(self, context: Context, vm: str) -> None:
        assert_allowed(self._database, vm, "pause")
        self._database.update("VM", vm, power_state="Paused")

    @call("VM.unpause(vm: VM ref) -> void", errors="VM_BAD_POWER_STATE VM_IS_TEMPLATE")
    def unpause(self, context: Context, vm: str) -> None:
        assert_allowed(self._database, vm, "unpause")
        self._database.update("VM", vm, power_state="Running")

    # -- settings ----------------------------------------------------------------------------------------------------

    @call(
        "VM.set_memory_limits(self: VM ref, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int)"
        " -> void",
        errors="MEMORY_CONSTRAINT_VIOLATION",
    )
    def set_memory_limits(
        self, context: Context, vm: str, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int
    ) -> None:
        """All four at once, static_min ≤ dynamic_min ≤ dynamic_max ≤ static_max."""
        assert_allowed(self._database, vm, "changing_memory_limits")
        _check_memory(static_min, dynamic_min, dynamic_max, static_max)
        self._database.update(
            "VM",
            vm,
            memory_static_min=static_min,
            memory_static_max=static_max,
            memory_dynamic_min=dynamic_min,
            memory_dynamic_max=dynamic_max,
        )

    @call(
        "VM.set_bios_strings(self: VM ref, value: (string -> string) map) -> void",
        errors="VM_BIOS_STRINGS_ALREADY_SET INVALID_VALUE",
    )
    def set_bios_strings(self, context: Context, vm: str, value: dict[str, str]) -> None:
        """Once in a VM's life; what is not named is as after a first start."""
        if self._database.get("VM", vm)["bios_strings"]:
            raise Failure("VM_BIOS_STRINGS_ALREADY_SET")
        for key in value.keys() - _BIOS_KEYS:
            raise Failure("INVALID_VALUE", key, "Unknown key")
        for key in (key for key, string in value.items() if not string):
            raise Failure("INVALID_VALUE", key, "Value provided is empty")
        self._database.update("VM", vm, bios_strings=GENERIC_BIOS_STRINGS | value)

    @call("VM.set_is_a_template(self: VM ref, value: bool) -> void", asynchronous=False)
    def set_is_a_template(self, context: Context, vm: str, value: bool) -> None:
        """Works on a snapshot too; turning a running VM into a template does not."""
        record = self._database.get("VM", vm)
        if value and record["power_state"] != "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm, "halted", record["power_state"].lower())
        self._database.update("VM", vm, is_a_template=value)

    @call("VM.set_NVRAM(self: VM ref, value: (string -> string) map) -> void")
    def set_nvram(self, context: Context, vm: str, value: dict[str, str]) -> None:
        self._database.update("VM", vm, NVRAM=value)

    @call("VM.set_ha_restart_priority(self: VM ref, value: string) -> void", errors="INVALID_VALUE")
    def set_ha_restart_priority(self, context: Context, vm: str, value: str) -> None:
        if value not in ("", "restart", "best-effort"):
            raise Failure("INVALID_VALUE", "ha_restart_priority", value)
        self._database.update("VM", vm, ha_restart_priority=value)

    @call("VM.set_order(self: VM ref, value: int) -> void")
    def set_order(self, context: Context, vm: str, value: int) -> None:
        self._database.update("VM", vm, order=value)

    @call("VM.set_start_delay(self: VM ref, value: int) -> void")
    def set_start_delay(self, context: Context, vm: str, value: int) -> None:
        self._database.update("VM", vm, start_delay=value)

    @call("VM.set_shutdown_delay(self: VM ref, value: int) -> void")
    def set_shutdown_delay(self, context: Context, vm: str, value: int) -> None:
        self._database.update("VM", vm, shutdown_delay=value)

    @call("VM.update_allowed_operations(self: VM ref) -> void")
    def update_allowed_operations(self, context: Context, vm: str) -> None:
        self._database.touch("VM", vm)

    @call("VM.assert_operation_valid(self: VM ref, op: enum vm_operations) -> void")
    def assert_operation_valid(self, context: Context, vm: str, op: str) -> None:
        assert_allowed(self._database, vm, op)

    @call("VM.get_allowed_VBD_devices(vm: VM ref) -> string set", asynchronous=False)
    def get_allowed_vbd_devices(self, context: Context, vm: str) -> list[str]:
        return free_devices(self._pool, vm)


def free_devices(pool: Pool, vm: str) -> list[str]:
    """Positions nobody has; 3 is kept for the CD."""
    taken = {pool.database.get("VBD", vbd)["userdevice"] for vbd in pool.database.get("VM", vm)["VBDs"]}
    return [str(number) for number in range(256) if number != 3 and str(number) not in taken]


def halt(pool: Pool, vm: str) -> None:
    """The VM is off, its disks are free."""
    record = pool.database.get("VM", vm)
    for vbd in record["VBDs"]:
        pool.plug(vbd, False)
    for vif in record["VIFs"]:
        pool.database.update("VIF", vif, currently_attached=False)
    if pool.database.exists("VDI", record["suspend_VDI"]):
        # Whether or not that works, it is forgotten about.
        with suppress(Failure):
            destroy_disk(pool, record["suspend_VDI"])
    pool.database.update("VM", vm, power_state="Halted", resident_on=NULL, domid=-1, suspend_VDI=NULL)


def destroy_vm(pool: Pool, vm: str) -> None:
    """Remove a VM that is off; its snapshots' line of parents is closed."""
    database = pool.database
    record = assert_allowed(database, vm, "destroy")
    for cls, names in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs")):
        for ref in list(record[names]):
            if cls == "VBD":
                pool.plug(ref, False)
            database.destroy(cls, ref)
    for child in list(record["children"]):
        database.update("VM", child, parent=record["parent"])
    database.destroy("VM", vm)


def _check_memory(static_min: int, dynamic_min: int, dynamic_max: int, static_max: int) -> None:
    if not static_min <= dynamic_min <= dynamic_max <= static_max:
        raise Failure("MEMORY_CONSTRAINT_VIOLATION", "static_min <= dynamic_min <= dynamic_max <= static_max")
