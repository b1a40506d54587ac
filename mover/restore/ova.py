"""The `ova.xml` of a restored VM, from the records of its restore point.

It describes the VM as it ran, not its snapshot: UUIDs, names and MAC addresses are those of the live one. References
are replaced by short ids of the file, or null where the file does not hold the object, as xen-api
ocaml/xapi/export.ml does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mover.backup.metadata import VmMetadata, ova_xml_of
from mover.backup.tags import without_tags
from mover.errors import NotFoundError
from mover.restore.vm_record import NULL, Record, disk_type, vm_other_config
from mover.store import PointDisk
from protocol.errors import FormatError
from protocol.xva.ova import Ova, OvaObject, parse_ova

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXPORT_VERSION = 2
# Of a VM that is not running and of which nothing else is in the file.
_AT_REST: Record = {
    "power_state": "Halted",
    "suspend_VDI": NULL,
    "suspend_SR": NULL,
    "resident_on": NULL,
    "scheduled_to_be_resident_on": NULL,
    "affinity": NULL,
    "is_a_snapshot": False,
    "is_default_template": False,
    "is_control_domain": False,
    "snapshot_of": NULL,
    "snapshots": [],
    "snapshot_time": _EPOCH,
    "parent": NULL,
    "children": [],
    "allowed_operations": [],
    "current_operations": {},
    "consoles": [],
    "crash_dumps": [],
    "attached_PCIs": [],
    "blobs": {},
    "appliance": NULL,
    "metrics": NULL,
    "guest_metrics": NULL,
    "ha_always_run": False,
    "ha_restart_priority": "",
    "blocked_operations": {},
}
_VDI_AT_REST: Record = {
    "is_a_snapshot": False,
    "snapshot_of": NULL,
    "snapshots": [],
    "snapshot_time": _EPOCH,
    "allowed_operations": [],
    "current_operations": {},
    "crash_dumps": [],
    "parent": NULL,
    "managed": True,
    "missing": False,
    "cbt_enabled": False,
    "sharable": False,
    "read_only": False,
    "storage_lock": False,
    "sm_config": {},
    "xenstore_data": {},
}
_DEVICE_AT_REST: Record = {
    "currently_attached": False,
    "allowed_operations": [],
    "current_operations": {},
    "status_code": 0,
    "status_detail": "",
    "runtime_properties": {},
    "metrics": NULL,
}


def describe(
    saved: VmMetadata,
    disks: Sequence[PointDisk],
    name: str,
    *,
    new_macs: bool = False,
    template: bool = False,
    network_names: Mapping[str, str] | None = None,
) -> tuple[Ova, dict[str, str]]:
    """The file's description of a VM called `name` with `disks`, and the id of each disk by its position.

    Drives of other disks are left out, CD drives are empty. `network_names` gives networks (refs of `saved`) the names
    of others: a server matches networks by name. Raises `NotFoundError` if the records do not fit together.
    """
    try:
        return _describe(saved, disks, name, new_macs, template, network_names or {})
    except KeyError as error:
        raise NotFoundError(f"the saved records of {name} lack {error}", "restore its disks with --to DIR") from error


def _describe(
    saved: VmMetadata,
    disks: Sequence[PointDisk],
    name: str,
    new_macs: bool,
    template: bool,
    network_names: Mapping[str, str],
) -> tuple[Ova, dict[str, str]]:
    by_uuid = {disk.vdi_uuid: disk for disk in disks}
    vdis = {ref: vdi for ref, vdi in saved.vdis.items() if vdi["uuid"] in by_uuid}
    vbds = {ref: vbd for ref, vbd in saved.vbds.items() if vbd["type"] == "CD" or vbd["VDI"] in vdis}
    vm_ref = next((vbd["VM"] for vbd in saved.vbds.values()), "the VM")
    kept: list[tuple[str, str, Record]] = [("VM", vm_ref, _vm(saved.vm, name, new_macs, template))]
    kept += [("VBD", ref, _vbd(vbd, vdis)) for ref, vbd in vbds.items()]
    kept += [("VIF", ref, _vif(vif, vm_ref, new_macs)) for ref, vif in saved.vifs.items()]
    kept += [("network", ref, _network(net, network_names.get(ref))) for ref, net in saved.networks.items()]
    kept += [("VDI", ref, _vdi(vdi, by_uuid[vdi["uuid"]])) for ref, vdi in vdis.items()]
    srs = {vdi["SR"] for vdi in vdis.values()}
    kept += [("SR", ref, sr) for ref, sr in saved.srs.items() if ref in srs]
    kept += [
        ("VTPM", ref, _vtpm(tpm, vm_ref, saved.vtpm_contents[ref]))
        for ref, tpm in saved.vtpms.items()
        if ref in saved.vtpm_contents
    ]
    ids = {ref: f"Ref:{number}" for number, (_, ref, _) in enumerate(kept)}
    objects = [OvaObject(cls, ids[ref], _renamed(record, ids)) for cls, ref, record in kept]
    positions = {by_uuid[vdi["uuid"]].position: ids[ref] for ref, vdi in vdis.items()}
    missing = [disk.name for disk in disks if disk.position not in positions]
    if missing:
        raise NotFoundError(f"the saved records of {name} lack its disk {missing[0]}", "restore it with --to DIR")
    return Ova(_version(saved), objects), positions


def _vm(saved: Record, name: str, new_macs: bool, template: bool) -> Record:
    other_config = vm_other_config(saved, new_macs=new_macs)
    return _at_rest(saved, _AT_REST) | {"name_label": name, "other_config": other_config, "is_a_template": template}


def _vbd(saved: Record, vdis: Mapping[str, Record]) -> Record:
    empty = {} if saved["VDI"] in vdis else {"empty": True, "VDI": NULL}
    return _at_rest(saved, _DEVICE_AT_REST) | empty | {"other_config": without_tags(saved["other_config"])}


def _vif(saved: Record, vm: str, new_macs: bool) -> Record:
    macs: Record = {"MAC": "", "MAC_autogenerated": True} if new_macs else {}
    return _at_rest(saved, _DEVICE_AT_REST) | macs | {"VM": vm}


def _network(saved: Record, name: str | None) -> Record:
    return saved if name is None else saved | {"name_label": name}


def _vdi(saved: Record, disk: PointDisk) -> Record:
    other_config = without_tags(saved.get("other_config", {}))
    own = {"virtual_size": str(disk.size), "other_config": other_config, "type": disk_type(saved)}
    return _at_rest(saved, _VDI_AT_REST) | own


def _vtpm(saved: Record, vm: str, contents: str) -> Record:
    """Its fields have other names here than in the API (xen-api ocaml/xapi/importexport.ml)."""
    return {
        "vTPM'_VM": vm,
        "vTPM'_uuid": saved["uuid"],
        "vTPM'_is_unique": saved.get("is_unique", False),
        "vTPM'_is_protected": saved.get("is_protected", False),
        "vTPM'_content": contents,
    }


def _at_rest(saved: Record, fields: Record) -> Record:
    return saved | {field: value for field, value in fields.items() if field in saved}


def _renamed(value: Any, ids: Mapping[str, str]) -> Any:
    """References become ids; what is not in the file becomes null."""
    match value:
        case str():
            if value in ids:
                return ids[value]
            return NULL if value.startswith("OpaqueRef:") else value
        case dict():
            return {ids.get(key, key): _renamed(item, ids) for key, item in value.items()}
        case list():
            return [_renamed(item, ids) for item in value]
        case _:
            return value


def _version(saved: VmMetadata) -> dict[str, Any]:
    """Who wrote it: the pool that the VM comes from, because a server refuses files of versions newer than its own."""
    try:
        if (ova_xml := ova_xml_of(saved)) is not None:
            return parse_ova(ova_xml.encode()).version | {"export_vsn": _EXPORT_VERSION}
    except FormatError:
        pass
    software = saved.software_version
    major, _, minor = software.get("xapi", "1.20").partition(".")
    names = ("hostname", "date", "product_version", "product_brand", "build_number")
    return {name: software.get(name, "") for name in names} | {
        "xapi_major": int(major) if major.isdigit() else 1,
        "xapi_minor": int(minor) if minor.isdigit() else 0,
        "export_vsn": _EXPORT_VERSION,
    }
