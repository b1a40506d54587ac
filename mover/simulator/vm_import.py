"""The objects that an import makes, and what it refuses.

Disks are always new. Networks are found by name, then by bridge, or made. With `restore` UUIDs and MAC addresses are
kept, and a halted VM of the same UUID is replaced. Source: xen-api ocaml/xapi/import.ml.
"""

from __future__ import annotations

import random
import uuid as uuids
from collections.abc import Iterator, Mapping
from typing import Any
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error, loads

from mover.simulator.devices import generate_mac
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.values import NULL, BadValueError, Record, coerce
from mover.simulator.vdi import create_disk, destroy_disk
from mover.simulator.vm import destroy_vm

# What this server writes itself; it refuses what is newer.
API_OF_ARCHIVES = (1, 20)
# Objects are made by their constructors, which take no run-time fields; a few are set afterwards all the same.
_SET_AFTERWARDS = {
    "VM": frozenset({"bios_strings", "is_a_snapshot", "snapshot_info", "snapshot_time", "transportable_snapshot_id"})
}
_NOT_TAKEN_OVER = {
    "VM": frozenset({"appliance", "protection_policy", "affinity", "suspend_SR", "suspend_VDI", "power_state"}),
    "VBD": frozenset({"currently_attached", "device"}),
    "VIF": frozenset({"currently_attached"}),
}


class VmImport:
    """One archive on its way into the pool: `describe`, `create`, fill the disks, `finish`; or `undo`.

    With `disks` it is metadata alone: disks have to be there, found by this map of UUIDs or by SR and location.
    `sizes` are those that the archive states, by the disks' names in it.
    """

    def __init__(
        self,
        pool: Pool,
        sr: str,
        task: str,
        *,
        restore: bool,
        force: bool,
        disks: Mapping[str, str] | None = None,
    ) -> None:
        self.inline_checksums = True
        self.sizes: dict[str, int] = {}
        self._pool = pool
        self._sr = sr
        self._task = task
        self._restore = restore
        self._force = force
        self._existing = disks
        self._objects: dict[str, dict[str, Record]] = {}
        self._made: dict[str, str] = {}
        self._vms: list[str] = []
        self._vdis: dict[str, str] = {}
        self._networks: list[str] = []

    def describe(self, ova_xml: bytes) -> None:
        """Read the description. Raises IMPORT_INCOMPATIBLE_VERSION, IMPORT_ERROR."""
        document = _value(ova_xml)
        try:
            version = document["version"]
            said = int(version["xapi_major"]), int(version["xapi_minor"])
            self.inline_checksums = int(version.get("export_vsn", 0)) > 0
            for item in document["objects"]:
                self._objects.setdefault(item["class"], {})[item["id"]] = item["snapshot"]
        except (KeyError, TypeError, ValueError) as error:
            raise Failure("IMPORT_ERROR", f"ova.xml: {error}") from None
        if said > API_OF_ARCHIVES:
            raise Failure("IMPORT_INCOMPATIBLE_VERSION")

    def create(self) -> None:
        """Make VM, networks, disks, drives, interfaces and TPMs."""
        for name, vm in self._of("VM"):
            if self._restore:
                self._make_way(name, vm)
        if self._restore:
            self._refuse_same_seeds()
        for name, vdi in self._disk_records():
            self._create_disk(name, vdi)
        for name, network in self._of("network"):
            self._made[name] = self._network(network)
        for name, vm in self._of("VM"):
            self._create_vm(name, vm)
        for _, vbd in self._of("VBD"):
            self._create_vbd(vbd)
        for _, vif in self._of("VIF"):
            self._create_vif(vif)
        for _, vtpm in self._of("VTPM"):
            self._create_vtpm(vtpm)

    def disks(self) -> Iterator[tuple[str, str]]:
        """The disks to be filled, in the order in which they come: name in the archive, VDI."""
        yield from sorted(self._vdis.items())

    def finish(self) -> list[str]:
        """The VMs are whole and may be used."""
        for vm in self._vms:
            self._pool.database.update("VM", vm, current_operations={})
        return list(self._vms)

    def undo(self) -> None:
        """Remove everything that was made."""
        database = self._pool.database
        for vm in self._vms:
            database.update("VM", vm, current_operations={}, blocked_operations={})
            destroy_vm(self._pool, vm)
        for vdi in self._vdis.values() if self._existing is None else ():
            destroy_disk(self._pool, vdi)
        for network in self._networks:
            database.destroy("network", network)

    def _of(self, cls: str) -> Iterator[tuple[str, Record]]:
        yield from self._objects.get(cls, {}).items()

    def _lookup(self, name: str) -> str:
        try:
            return self._made[name]
        except KeyError:
            raise Failure("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", name) from None

    # -- what is in the way --------------------------------------------------------------------------------------------

    def _make_way(self, name: str, vm: Record) -> None:
        database = self._pool.database
        for ref, existing in list(database.items("VM")):
            if existing["uuid"] != vm["uuid"]:
                continue
            if existing["power_state"] != "Halted":
                raise Failure("VM_BAD_POWER_STATE", ref, "Halted", existing["power_state"])
            imported = int(vm.get("version", 0))
            if existing["version"] >= imported and not self._force:
                raise Failure("VM_TO_IMPORT_IS_NOT_NEWER_VERSION", ref, str(existing["version"]), str(imported))
            destroy_vm(self._pool, ref)

    def _refuse_same_seeds(self) -> None:
        """A VM that is new to the pool must not have the MAC seed of one that is there, snapshots included."""
        present = {record["other_config"].get("mac_seed") for _, record in self._pool.database.items("VM")} - {None}
        for _, vm in self._of("VM"):
            seed = vm.get("other_config", {}).get("mac_seed")
            if seed in present:
                raise Failure("DUPLICATE_MAC_SEED", seed)

    # -- what is made --------------------------------------------------------------------------------------------------

    def _disk_records(self) -> Iterator[tuple[str, Record]]:
        """The VDIs of drives that are no CD drives and of SRs that hold no ISO files."""
        vdis = self._objects.get("VDI", {})
        for _, vbd in self._of("VBD"):
            if vbd["type"] == "CD" or vbd["VDI"] == NULL:
                continue
            if vbd["VDI"] not in vdis:
                raise Failure("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", vbd["VDI"])
            vdi = vdis[vbd["VDI"]]
            sr = self._objects.get("SR", {}).get(vdi["SR"])
            if sr is None:
                raise Failure("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", vdi["SR"])
            if sr["content_type"] != "iso":
                yield vbd["VDI"], vdi

    def _create_disk(self, name: str, vdi: Record) -> None:
        if name in self._vdis:
            return
        if self._existing is not None:
            self._find_disk(name, vdi, self._existing)
            return
        sm_config = vdi.get("sm_config", {}) | {"import_task": self._task}
        ref = create_disk(self._pool, vdi | {"SR": self._sr, "sm_config": sm_config})
        self._vdis[name] = self._made[name] = ref
        self.sizes[name] = int(vdi["virtual_size"])

    def _find_disk(self, name: str, vdi: Record, mapped: Mapping[str, str]) -> None:
        database = self._pool.database
        sr_uuid = self._objects["SR"][vdi["SR"]]["uuid"]
        wanted = mapped.get(vdi["uuid"])
        for ref, record in database.items("VDI"):
            here = database.get("SR", record["SR"])["uuid"] == sr_uuid and record["location"] == vdi["location"]
            if record["uuid"] == wanted or (wanted is None and here):
                self._vdis[name] = self._made[name] = ref
                return
        if self._force:
            return
        for ref, record in database.items("SR"):
            if record["uuid"] == sr_uuid:
                raise Failure("VDI_LOCATION_MISSING", ref, vdi["location"])
        raise Failure("VDI_CONTENT_ID_MISSING")

    def _network(self, saved: Record) -> str:
        database = self._pool.database
        for field in ("name_label", "bridge"):
            for ref, record in database.items("network"):
                if record[field] == saved[field]:
                    return ref
        fields = {"name_label": saved["name_label"], "other_config": {"import_task": self._task}}
        ref = database.create("network", fields)
        self._networks.append(ref)
        return ref

    def _create_vm(self, name: str, saved: Record) -> None:
        fields = self._fields("VM", saved)
        other_config = dict(fields["other_config"])
        if not self._restore:
            other_config["mac_seed"] = str(uuids.uuid4())
        fields |= {
            "other_config": other_config | {"import_task": self._task},
            "version": fields["version"] + 1 if self._restore else 0,
            "generation_id": _generation(
                fields.get("generation_id", ""), is_a_template=bool(fields.get("is_a_template"))
            ),
            "blocked_operations": {},
            "current_operations": {self._task: "import"},
        }
        vm = self._pool.database.create("VM", fields, uuid=saved["uuid"] if self._restore else None)
        self._made[name] = vm
        self._vms.append(vm)

    def _create_vbd(self, saved: Record) -> None:
        fields = self._fields("VBD", saved)
        has_disk = saved["type"] != "CD" and saved["VDI"] in self._vdis
        if saved["type"] != "CD" and not has_disk:
            return
        fields |= {
            "VM": self._lookup(saved["VM"]),
            "VDI": self._vdis[saved["VDI"]] if has_disk else NULL,
            "empty": not has_disk,
        }
        self._pool.database.create("VBD", fields, uuid=saved["uuid"] if self._restore else None)

    def _create_vif(self, saved: Record) -> None:
        vm = self._lookup(saved["VM"])
        fields = self._fields("VIF", saved) | {"VM": vm, "network": self._lookup(saved["network"])}
        if not self._restore or not fields["MAC"]:
            seed = self._pool.database.get("VM", vm)["other_config"]["mac_seed"]
            fields |= {"MAC": generate_mac(seed, int(fields["device"])), "MAC_autogenerated": True}
        self._pool.database.create("VIF", fields, uuid=saved["uuid"] if self._restore else None)

    def _create_vtpm(self, saved: Record) -> None:
        database = self._pool.database
        try:
            fields = {"VM": self._lookup(saved["vTPM'_VM"]), "is_unique": saved["vTPM'_is_unique"]}
            uuid, contents = saved["vTPM'_uuid"], saved["vTPM'_content"]
        except KeyError as error:
            raise Failure("IMPORT_ERROR", f"a VTPM lacks {error}") from None
        if self._restore and any(record["uuid"] == uuid for _, record in database.items("VTPM")):
            raise Failure("IMPORT_ERROR", "VTPM instance already exists")
        vtpm = database.create("VTPM", fields, uuid=uuid if self._restore else None)
        database.set_blob(database.get("VTPM", vtpm)["uuid"], contents)

    def _fields(self, cls: str, saved: Mapping[str, Any]) -> Record:
        """What the archive says of an object, checked against the data model; fields of other versions are ignored."""
        fields: Record = {}
        for field in self._pool.database.models[cls].fields.values():
            taken = field.qualifier != "RO/runtime" or field.name in _SET_AFTERWARDS.get(cls, ())
            if field.name not in saved or field.name in _NOT_TAKEN_OVER[cls] or not taken:
                continue
            try:
                fields[field.name] = coerce(field.type, _plain(saved[field.name]))
            except BadValueError as error:
                raise Failure("IMPORT_ERROR", f"{cls}.{field.name}: {error}") from None
        return fields


def _generation(current: str, *, is_a_template: bool) -> str:
    """A new one if it has one: the guest has been set back. Templates do not start (xen-api xapi_vm_helpers.ml)."""
    return current if is_a_template or not current else f"{random.getrandbits(62)}:{random.getrandbits(62)}"


def _value(ova_xml: bytes) -> Record:
    """The XML-RPC value of an ova.xml."""
    text = ova_xml.decode("utf-8", "replace")
    start = text.find("<value")
    try:
        (value,), _ = loads(f"<methodResponse><params><param>{text[start:]}</param></params></methodResponse>")
    except (ExpatError, Error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Failure("IMPORT_ERROR", f"ova.xml: {error}") from None
    if not isinstance(value, dict):
        raise Failure("IMPORT_ERROR", "ova.xml is no struct")
    return value


def _plain(value: Any) -> Any:
    """Dates as text, which is what is checked."""
    return getattr(value, "value", value) if type(value).__name__ == "DateTime" else value
