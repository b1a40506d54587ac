"""The metadata of a VM as the servers export it: a tar with `ova.xml`, an XML-RPC value.

Source: xen-api ocaml/xapi/export.ml, importexport.ml; mirage/ocaml-tar lib/tar.ml (V7 headers).
"""

from __future__ import annotations

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


def export_metadata(database: Database, vm: str, ids: count[int]) -> bytes:
    """The tar of one VM. `ids` gives the numbers of the references in it: they are counted over a server's life."""
    xml = encode_value(_document(database, vm, ids)).encode()
    return _tar_header("ova.xml", len(xml)) + xml + bytes(-len(xml) % _BLOCK) + bytes(2 * _BLOCK)


def _document(database: Database, vm: str, ids: count[int]) -> Value:
    objects = _objects(database, vm)
    names = {ref: f"Ref:{next(ids)}" for _, ref in objects}
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
            {"class": cls, "id": names[ref], "snapshot": _sanitised(cls, database.get(cls, ref), names)}
            for cls, ref in objects
        ],
    }


def _objects(database: Database, vm: str) -> list[tuple[str, str]]:
    record = database.get("VM", vm)
    found: dict[str, list[str]] = {cls: [] for cls in _ORDER}
    found["VM"] = [vm]
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs")):
        found[cls] = list(record[field])
    found["VM_guest_metrics"] = [record["guest_metrics"]]
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


def _tar_header(name: str, size: int) -> bytes:
    header = bytearray(_BLOCK)
    header[: len(name)] = name.encode()
    moment = int(datetime.now(UTC).timestamp())
    for at, text in ((100, b"0000400\0"), (108, b"0000000\0"), (116, b"0000000\0")):
        header[at : at + 8] = text
    header[124:136] = f"{size:011o}\0".encode()
    header[136:148] = f"{moment:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)
