"""The metadata of a VM as the servers export it: a tar with `ova.xml`, an XML-RPC value.

Source: xen-api ocaml/xapi/export.ml, importexport.ml; mirage/ocaml-tar lib/tar.ml (V7 headers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from mover.simulator.database import Database
from mover.simulator.values import EPOCH, NULL, Record, Value
from mover.simulator.xmlrpc import encode_value

_ORDER = ("host", "VM", "VM_guest_metrics", "VBD", "VIF", "network", "VDI", "SR", "VTPM")
_EMPTIED: Record = {
    "is_a_snapshot": False,
    "snapshot_of": NULL,
    "snapshots": [],
    "snapshot_time": EPOCH,
    "parent": NULL,
    "children": [],
    "allowed_operations": [],
    "current_operations": {},
    "consoles": [],
    "crash_dumps": [],
    "blobs": {},
}
_BLOCK = 512


TAR_END = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class Wanted:
    """Whose metadata: `vms`, with their snapshots or not, without the devices of some classes."""

    vms: Sequence[str]
    snapshots: bool = False
    without: frozenset[str] = frozenset()


def export_metadata(database: Database, wanted: Wanted, ids: count[int]) -> bytes:
    """The tar of some VMs. `ids` gives the numbers of the references in it: they are counted over a server's life."""
    names = short_names(database, wanted, ids)
    return member("ova.xml", ova_xml(database, wanted, names, {})) + TAR_END


def short_names(database: Database, wanted: Wanted, ids: count[int]) -> dict[str, str]:
    """By reference, what the objects of an export are called in it."""
    return {ref: f"Ref:{next(ids)}" for _, ref in _objects(database, wanted)}


def ova_xml(database: Database, wanted: Wanted, names: dict[str, str], of_vm: Record) -> bytes:
    """The document of some VMs; `of_vm` are fields of them that an export changes."""
    return encode_value(_document(database, wanted, names, of_vm)).encode()


def member(name: str, content: bytes, moment: int | None = None) -> bytes:
    """A file of a tar. `moment` is in seconds since 1970, now if it is None."""
    return tar_header(name, len(content), moment) + content + bytes(-len(content) % _BLOCK)


def _document(database: Database, wanted: Wanted, names: dict[str, str], of_vm: Record) -> Value:
    objects = [(cls, ref, _exported(database, cls, ref, of_vm)) for cls, ref in _objects(database, wanted)]
    software = database.get("host", next(r["master"] for _, r in database.items("pool")))["software_version"]
    version = {
        "hostname": software.get("hostname", ""),
        "date": software.get("date", ""),
        "product_version": software.get("product_version", ""),
        "product_brand": software.get("product_brand", ""),
        "build_number": software.get("build_number", ""),
        "xapi_major": 1,
        "xapi_minor": 20,
        "export_vsn": 2,
    }
    return {
        "version": version,
        "objects": [
            {"class": cls, "id": names[ref], "snapshot": _sanitised(cls, record, names)} for cls, ref, record in objects
        ],
    }


def _exported(database: Database, cls: str, ref: str, of_vm: Record) -> Record:
    record = database.get(cls, ref)
    if cls == "VM":
        return record | of_vm
    if cls == "VTPM":
        # Not the record of the API: the contents are in it (importexport.ml).
        fields = ("VM", "is_unique", "is_protected", "uuid")
        contents = {"vTPM'_content": database.blobs.get(record["uuid"], "")}
        return {f"vTPM'_{name}": record[name] for name in fields} | contents
    return record


def _objects(database: Database, wanted: Wanted) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {cls: [] for cls in _ORDER}
    for vm in wanted.vms:
        found["VM"] += [vm, *(database.get("VM", vm)["snapshots"] if wanted.snapshots else ())]
    for record in [database.get("VM", vm) for vm in found["VM"]]:
        for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs")):
            if cls.lower() not in wanted.without:
                found[cls] += record[field]
        found["VM_guest_metrics"].append(record["guest_metrics"])
    found["network"] = [database.get("VIF", vif)["network"] for vif in found["VIF"]]
    found["VDI"] = [database.get("VBD", vbd)["VDI"] for vbd in found["VBD"]]
    found["SR"] = [database.get("VDI", vdi)["SR"] for vdi in found["VDI"] if database.exists("VDI", vdi)]
    found["host"] = database.refs("host")
    return [(cls, ref) for cls in _ORDER for ref in dict.fromkeys(found[cls]) if database.exists(cls, ref)]


def _sanitised(cls: str, record: Record, names: dict[str, str]) -> Value:
    fields = record | (_EMPTIED if cls == "VM" else {})
    if cls in ("VBD", "VIF"):
        fields = fields | {"currently_attached": False}
    return {name: _renamed(value, names) for name, value in fields.items()}


def _renamed(value: Value, names: dict[str, str]) -> Value:
    """References become short names; what is not in the export becomes null."""
    if isinstance(value, str):
        return names.get(value, NULL) if value.startswith("OpaqueRef:") else value
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    return value


def tar_header(name: str, size: int, moment: int | None) -> bytes:
    """The header of a file in a tar; see `member`."""
    header = bytearray(_BLOCK)
    header[: len(name)] = name.encode()
    if moment is None:
        moment = int(datetime.now(UTC).timestamp())
    for at, text in ((100, b"0000400\0"), (108, b"0000000\0"), (116, b"0000000\0")):
        header[at : at + 8] = text
    header[124:136] = f"{size:011o}\0".encode()
    header[136:148] = f"{moment:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)
