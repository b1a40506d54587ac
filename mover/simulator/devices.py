"""Virtual block devices and network interfaces.

Source: xen-api ocaml/xapi/xapi_vbd.ml, xapi_vbd_helpers.ml, xapi_vif.ml, xapi_vif_helpers.ml, record_util.ml.
"""

from __future__ import annotations

import hashlib
import re

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.values import NULL, Record
from mover.simulator.vdi import constructor_fields, refuse_metadata
from mover.simulator.vm import free_devices

_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_DEVICE = re.compile(r"\d{1,3}|(xvd|hd|sd|fd)[a-z]+\d*")


class VbdCalls:
    """The calls of VBD."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._database = pool.database

    @call(
        "VBD.create(args: VBD record) -> VBD ref",
        errors="VDI_INCOMPATIBLE_TYPE VBD_CDS_MUST_BE_READONLY VBD_NOT_REMOVABLE_MEDIA VDI_READONLY INVALID_DEVICE"
        " DEVICE_ALREADY_EXISTS",
    )
    def create(self, context: Context, args: Record) -> str:
        fields = constructor_fields(self._pool, "VBD", args)
        vm = fields["VM"]
        self._database.get("VM", vm)
        if fields["type"] == "CD" and fields["mode"] != "RO":
            raise Failure("VBD_CDS_MUST_BE_READONLY")
        if fields["empty"]:
            if fields["type"] == "Disk":
                raise Failure("VBD_NOT_REMOVABLE_MEDIA", NULL)
            fields["VDI"] = NULL
        else:
            self._check_disk(fields["VDI"], fields["mode"])
        fields["userdevice"] = self._position(vm, fields["userdevice"])
        fields.pop("currently_attached", None)
        fields.pop("device", None)
        return self._database.create("VBD", fields)

    def _check_disk(self, vdi: str, mode: str) -> None:
        record = self._database.get("VDI", vdi)
        refuse_metadata(vdi, record)
        if record["read_only"] and mode == "RW":
            raise Failure("VDI_READONLY", vdi)

    def _position(self, vm: str, wanted: str) -> str:
        free = free_devices(self._pool, vm)
        if wanted == "autodetect":
            return free[0]
        if not _DEVICE.fullmatch(wanted):
            raise Failure("INVALID_DEVICE", wanted)
        if wanted.isdigit() and wanted not in free and wanted != "3":
            raise Failure("DEVICE_ALREADY_EXISTS", wanted)
        if any(self._database.get("VBD", vbd)["userdevice"] == wanted for vbd in self._database.get("VM", vm)["VBDs"]):
            raise Failure("DEVICE_ALREADY_EXISTS", wanted)
        return wanted

    @call("VBD.destroy(self: VBD ref) -> void", errors="OPERATION_NOT_ALLOWED")
    def destroy(self, context: Context, vbd: str) -> None:
        if self._database.get("VBD", vbd)["currently_attached"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VBD '{self._database.get('VBD', vbd)['uuid']}' still attached")
        self._database.destroy("VBD", vbd)

    @call("VBD.plug(self: VBD ref) -> void", errors="DEVICE_ALREADY_ATTACHED VM_BAD_POWER_STATE VDI_IN_USE")
    def plug(self, context: Context, vbd: str) -> None:
        record = self._database.get("VBD", vbd)
        vm = self._database.get("VM", record["VM"])
        if record["currently_attached"]:
            raise Failure("DEVICE_ALREADY_ATTACHED", vbd)
        if vm["power_state"] != "Running":
            raise Failure("VM_BAD_POWER_STATE", record["VM"], "running", vm["power_state"].lower())
        if record["mode"] == "RW" and any(other["mode"] == "RW" for other in self._pool.attached(record["VDI"])):
            raise Failure("VDI_IN_USE", record["VDI"], "attach")
        self._pool.plug(vbd, True)

    @call("VBD.unplug(self: VBD ref) -> void", errors="DEVICE_ALREADY_DETACHED DEVICE_DETACH_REJECTED")
    def unplug(self, context: Context, vbd: str) -> None:
        if not self._database.get("VBD", vbd)["currently_attached"]:
            raise Failure("DEVICE_ALREADY_DETACHED", vbd)
        self._pool.plug(vbd, False)

    @call("VBD.unplug_force(self: VBD ref) -> void")
    def unplug_force(self, context: Context, vbd: str) -> None:
        self._pool.plug(vbd, False)

    @call("VBD.eject(vbd: VBD ref) -> void", errors="VBD_NOT_REMOVABLE_MEDIA VBD_IS_EMPTY")
    def eject(self, context: Context, vbd: str) -> None:
        record = self._database.get("VBD", vbd)
        if record["type"] == "Disk":
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", vbd)
        if record["empty"]:
            raise Failure("VBD_IS_EMPTY", vbd)
        self._database.update("VBD", vbd, VDI=NULL, empty=True)

    @call("VBD.insert(vbd: VBD ref, vdi: VDI ref) -> void", errors="VBD_NOT_REMOVABLE_MEDIA VBD_NOT_EMPTY")
    def insert(self, context: Context, vbd: str, vdi: str) -> None:
        record = self._database.get("VBD", vbd)
        if record["type"] == "Disk":
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", vbd)
        if not record["empty"]:
            raise Failure("VBD_NOT_EMPTY", vbd)
        self._check_disk(vdi, "RO")
        self._database.update("VBD", vbd, VDI=vdi, empty=False)

    @call("VBD.set_mode(self: VBD ref, value: enum vbd_mode) -> void", errors="VBD_CDS_MUST_BE_READONLY")
    def set_mode(self, context: Context, vbd: str, value: str) -> None:
        if self._database.get("VBD", vbd)["type"] == "CD" and value == "RW":
            raise Failure("VBD_CDS_MUST_BE_READONLY")
        self._database.update("VBD", vbd, mode=value)


class VifCalls:
    """The calls of VIF."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._database = pool.database

    @call("VIF.create(args: VIF record) -> VIF ref", errors="MAC_INVALID DEVICE_ALREADY_EXISTS INVALID_DEVICE")
    def create(self, context: Context, args: Record) -> str:
        """An empty MAC is made from the VM's seed and the device: the same ones give the same."""
        fields = constructor_fields(self._pool, "VIF", args)
        vm, device = self._database.get("VM", fields["VM"]), fields["device"]
        self._database.get("network", fields["network"])
        if not device.isdigit():
            raise Failure("INVALID_DEVICE", device)
        if any(self._database.get("VIF", vif)["device"] == device for vif in vm["VIFs"]):
            raise Failure("DEVICE_ALREADY_EXISTS", device)
        seed = vm["other_config"].get("mac_seed")
        fields["MAC_autogenerated"] = not fields["MAC"] and seed is not None
        if fields["MAC_autogenerated"]:
            fields["MAC"] = generate_mac(seed, int(device))
        if not _MAC.fullmatch(fields["MAC"]) or int(fields["MAC"][:2], 16) & 1:
            raise Failure("MAC_INVALID", fields["MAC"])
        fields["currently_attached"] = False
        return self._database.create("VIF", fields)

    @call("VIF.destroy(self: VIF ref) -> void", errors="OPERATION_NOT_ALLOWED")
    def destroy(self, context: Context, vif: str) -> None:
        if self._database.get("VIF", vif)["currently_attached"]:
            raise Failure("OPERATION_NOT_ALLOWED", "VIF currently attached to a running VM")
        self._database.destroy("VIF", vif)

    @call("VIF.plug(self: VIF ref) -> void")
    def plug(self, context: Context, vif: str) -> None:
        self._database.update("VIF", vif, currently_attached=True)

    @call("VIF.unplug(self: VIF ref) -> void")
    def unplug(self, context: Context, vif: str) -> None:
        self._database.update("VIF", vif, currently_attached=False)

    @call("VIF.move(self: VIF ref, network: network ref) -> void")
    def move(self, context: Context, vif: str, network: str) -> None:
        self._database.get("network", network)
        self._database.update("VIF", vif, network=network)

    @call("VIF.set_locking_mode(self: VIF ref, value: enum vif_locking_mode) -> void")
    def set_locking_mode(self, context: Context, vif: str, value: str) -> None:
        self._database.update("VIF", vif, locking_mode=value)

    @call("VIF.set_ipv4_allowed(self: VIF ref, value: string set) -> void")
    def set_ipv4_allowed(self, context: Context, vif: str, value: list[str]) -> None:
        self._database.update("VIF", vif, ipv4_allowed=value)

    @call("VIF.set_ipv6_allowed(self: VIF ref, value: string set) -> void")
    def set_ipv6_allowed(self, context: Context, vif: str, value: list[str]) -> None:
        self._database.update("VIF", vif, ipv6_allowed=value)


def generate_mac(seed: str, device: int) -> str:
    """A locally administered unicast address out of a chain of MD5 over the seed, longer for each device."""
    digest = hashlib.md5(seed.encode(), usedforsecurity=False).digest()
    for _ in range(2 * device):
        digest = hashlib.md5(digest, usedforsecurity=False).digest()
    following = hashlib.md5(digest, usedforsecurity=False).digest()
    octets = [*digest[:4], *following[1:3]]
    octets[0] = (octets[0] | 0x02) & 0xFE
    return ":".join(f"{octet:02x}" for octet in octets)
