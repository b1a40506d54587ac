"""From saved records to the arguments of constructors: what is kept, what is dropped, what is pool-local.

Pure functions. Which fields a constructor reads, and which it accepts and ignores, is xen-api
ocaml/idl/datamodel_vm.ml; integers stay the strings that XML-RPC gave.
"""

from __future__ import annotations

from typing import Any

from mover.backup.metadata import SuspendedVm
from mover.backup.tags import without_tags

Record = dict[str, Any]
NULL = "OpaqueRef:NULL"
# The pool makes one of it when the VM starts.
_NEW_GENERATION = "0:0"

# Fields of VM.create that describe the VM itself. All others are refs of the old pool, run-time state, or set later
# by calls of their own (bios_strings, blocked_operations, and what `finish` sets).
_VM_FIELDS = (
    "name_description",
    "user_version",
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
    "memory_target",
    "VCPUs_params",
    "VCPUs_max",
    "VCPUs_at_startup",
    "actions_after_shutdown",
    "actions_after_softreboot",
    "actions_after_reboot",
    "actions_after_crash",
    "PV_bootloader",
    "PV_kernel",
    "PV_ramdisk",
    "PV_args",
    "PV_bootloader_args",
    "PV_legacy_args",
    "HVM_boot_policy",
    "HVM_boot_params",
    "HVM_shadow_multiplier",
    "platform",
    "PCI_bus",
    "recommendations",
    "xenstore_data",
    "tags",
    "order",
    "start_delay",
    "shutdown_delay",
    "version",
    "hardware_platform_version",
    "has_vendor_device",
    "reference_label",
    "domain_type",
    "NVRAM",
)
_VBD_FIELDS = (
    "userdevice",
    "bootable",
    "mode",
    "type",
    "unpluggable",
    "qos_algorithm_type",
    "qos_algorithm_params",
)
_VIF_FIELDS = (
    "device",
    "MTU",
    "qos_algorithm_type",
    "qos_algorithm_params",
    "locking_mode",
    "ipv4_allowed",
    "ipv6_allowed",
)
# What VM.set_bios_strings takes. The pool itself sets others, too, and leaves most of them empty, which the call
# refuses (xen-api ocaml/xapi-consts/constants.ml, ocaml/xapi/xapi_vm_helpers.ml).
_BIOS_STRINGS = (
    "bios-vendor",
    "bios-version",
    "system-manufacturer",
    "system-product-name",
    "system-version",
    "system-serial-number",
    "baseboard-manufacturer",
    "baseboard-product-name",
    "baseboard-version",
    "baseboard-serial-number",
    "baseboard-asset-tag",
    "baseboard-location-in-chassis",
    "enclosure-asset-tag",
)
# Those that every VM has, unless it has a host's.
_OF_EVERY_VM = {"oem-1": "Xen", "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d"}


def _pick(record: Record, fields: tuple[str, ...]) -> Record:
    return {field: record[field] for field in fields if field in record}


def vm_arguments(saved: Record, name: str, *, new_macs: bool) -> Record:
    """The argument of VM.create for a VM that cannot run yet.

    A guest that looks at its generation id has to notice that it was set back: it gets a new one when it starts, if it
    had one (xen-api ocaml/xapi/xapi_xenops.ml).
    """
    return _pick(saved, _VM_FIELDS) | {
        "name_label": name,
        "other_config": vm_other_config(saved, new_macs=new_macs),
        "generation_id": _NEW_GENERATION if saved.get("generation_id") else "",
        "is_a_template": False,
        "affinity": NULL,
        "ha_always_run": False,
        "ha_restart_priority": "",
    }


def vm_other_config(saved: Record, *, new_macs: bool) -> dict[str, str]:
    """`other_config` of the restored VM: what was there, but for what says how the old one came about.

    `mac_seed` is what generated MAC addresses derive from; without it the pool makes a new one.
    """
    without = ("import_task", "mac_seed") if new_macs else ("import_task",)
    return {key: value for key, value in without_tags(saved["other_config"]).items() if key not in without}


def bios_strings(saved: Record) -> dict[str, str]:
    """The argument of VM.set_bios_strings: those that it takes. What is not named is as after a first start."""
    found: dict[str, str] = saved.get("bios_strings") or {}
    return {key: found[key] for key in _BIOS_STRINGS if found.get(key)}


def lost_bios_strings(saved: Record) -> list[str]:
    """Keys of BIOS strings that only an import sets: those that the VM had of a host."""
    found: dict[str, str] = saved.get("bios_strings") or {}
    return sorted(
        key for key, value in found.items() if value and key not in _BIOS_STRINGS and value != _OF_EVERY_VM.get(key)
    )


def disk_type(saved: Record) -> str:
    """What a restored disk is: other types than these two are not for drives."""
    return "system" if saved.get("type") == "system" else "user"


def suspended_arguments(suspended: SuspendedVm, image: str) -> Record:
    """What the argument of VM.create has besides, if the VM is to be a suspended one; `image` is a VDI (a ref)."""
    return {
        "power_state": "Suspended",
        "suspend_VDI": image,
        "last_booted_record": suspended.last_booted_record,
        "last_boot_CPU_flags": suspended.last_boot_CPU_flags,
    }


def vdi_arguments(saved: Record, sr: str, size: int) -> Record:
    """The argument of VDI.create. `sm_config` and `xenstore_data` belong to the old SR's image and are not copied."""
    return {
        "name_label": saved.get("name_label", ""),
        "name_description": saved.get("name_description", ""),
        "SR": sr,
        "virtual_size": str(size),
        "type": disk_type(saved),
        "sharable": False,
        "read_only": False,
        "other_config": without_tags(saved.get("other_config", {})),
        "xenstore_data": {},
        "sm_config": {},
        "tags": saved.get("tags", []),
    }


def vbd_arguments(saved: Record, vm: str, vdi: str | None) -> Record:
    """The argument of VBD.create; `vdi` None makes an empty drive."""
    return _pick(saved, _VBD_FIELDS) | {
        "VM": vm,
        "VDI": vdi or NULL,
        "empty": vdi is None,
        "other_config": without_tags(saved["other_config"]),
    }


def vif_arguments(saved: Record, vm: str, network: str, *, new_mac: bool) -> Record:
    """The argument of VIF.create; an empty MAC asks the pool to make one."""
    return _pick(saved, _VIF_FIELDS) | {
        "VM": vm,
        "network": network,
        "MAC": "" if new_mac else saved["MAC"],
        "other_config": without_tags(saved["other_config"]),
    }
