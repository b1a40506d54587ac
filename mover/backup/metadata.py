"""Everything about a VM that is not disk content: what a restore needs to make it again.

One JSON document of raw API records, so that a field this version does not know survives a backup and a restore by a
newer one. Refs in it only tie its own records together.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import zstandard

from mover.backup.records import records_of
from mover.backup.snapshot import Snapshot
from mover.backup.tags import without_blocks
from mover.store import MAX_RAW
from protocol.errors import FormatError, XapiError
from protocol.xapi import Pool, Transfers
from protocol.xva.ova import MAX_OVA, OvaObject, parse_ova

FORMAT = 1
_LEVEL = 3

Record = dict[str, Any]


class SuspendedVm(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes besides to make a VM a suspended one: the record of the image of its memory, and more."""

    vdi: Record
    last_booted_record: str
    last_boot_CPU_flags: dict[str, str]


class VmMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Raw records, by ref where there are several.

    The server's own export of the same, if it gave one, is in `ova_xml`; or in `ova_xml_zstd`, where it is long.
    """

    format: int = FORMAT
    vm: Record
    vbds: dict[str, Record]
    vdis: dict[str, Record]
    vifs: dict[str, Record]
    networks: dict[str, Record]
    pifs: dict[str, Record]
    srs: dict[str, Record]
    vtpms: dict[str, Record]
    vtpm_contents: dict[str, str]
    guest_metrics: Record | None = None
    software_version: dict[str, str]
    ova_xml: str | None = None
    ova_xml_zstd: bytes | None = None
    suspended: SuspendedVm | None = None


async def suspended(pool: Pool, snapshot: Snapshot) -> SuspendedVm | None:
    """What a snapshot with memory says about it."""
    if snapshot.memory is None:
        return None
    vm: Record = await pool.call("VM.get_record", snapshot.ref)
    return SuspendedVm(
        vdi=await pool.call("VDI.get_record", snapshot.memory.ref),
        last_booted_record=str(vm.get("last_booted_record", "")),
        last_boot_CPU_flags=dict(vm.get("last_boot_CPU_flags", {})),
    )


def encode(metadata: VmMetadata) -> bytes:
    """JSON, UTF-8. Values that JSON lacks (XML-RPC dates) become strings."""
    return msgspec.json.encode(metadata, enc_hook=str)


def decode(data: bytes) -> VmMetadata:
    """The inverse of `encode`. Raises `FormatError`."""
    try:
        return msgspec.json.decode(data, type=VmMetadata)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError("VM metadata", str(error)) from error


async def collect(pool: Pool, vm: str) -> VmMetadata:
    """Gather the records of the live VM `vm` (a ref)."""
    vm_record: Record = await pool.call("VM.get_record", vm)
    vm_record["blocked_operations"] = without_blocks(vm_record.get("blocked_operations") or {})
    vbds = await records_of(pool, "VBD", vm_record["VBDs"])
    vifs = await records_of(pool, "VIF", vm_record["VIFs"])
    vdis = await records_of(pool, "VDI", [vbd["VDI"] for vbd in vbds.values() if not vbd["empty"]])
    networks = await records_of(pool, "network", [vif["network"] for vif in vifs.values()])
    pifs = await records_of(pool, "PIF", [pif for network in networks.values() for pif in network["PIFs"]])
    srs = await records_of(pool, "SR", [vdi["SR"] for vdi in vdis.values()])
    vtpms = await records_of(pool, "VTPM", vm_record.get("VTPMs", []))
    return VmMetadata(
        vm=vm_record,
        vbds=vbds,
        vdis=vdis,
        vifs=vifs,
        networks=networks,
        pifs=pifs,
        srs=srs,
        vtpms=vtpms,
        vtpm_contents=await _vtpm_contents(pool, vtpms),
        guest_metrics=await _guest_metrics(pool, vm_record),
        software_version=pool.master.software_version,
    )


async def _vtpm_contents(pool: Pool, vtpms: dict[str, Record]) -> dict[str, str]:
    """What can be read of it: only the pool's own root user may (xen-api ocaml/idl/datamodel_vtpm.ml)."""
    contents: dict[str, str] = {}
    for ref in vtpms:
        try:
            contents[ref] = await pool.call("VTPM.get_contents", ref)
        except XapiError as error:
            if error.code != "RBAC_PERMISSION_DENIED":
                raise
    return contents


async def _guest_metrics(pool: Pool, vm: Record) -> Record | None:
    found = await records_of(pool, "VM_guest_metrics", [vm.get("guest_metrics", "OpaqueRef:NULL")])
    return next(iter(found.values()), None)


def with_ova_xml(metadata: VmMetadata, ova_xml: bytes | None) -> VmMetadata:
    """`metadata` and the server's own form of it, unless that is none or more than `MAX_OVA` bytes.

    All of it has to fit into one blob of the store: a long one is compressed, which makes a twentieth of it.
    """
    if ova_xml is None or len(ova_xml) > MAX_OVA:
        return metadata
    text = ova_xml.decode("utf-8", "replace")
    packed = zstandard.ZstdCompressor(_LEVEL).compress(text.encode()) if len(ova_xml) > MAX_RAW // 2 else None
    complete = msgspec.structs.replace(metadata, ova_xml=None if packed else text, ova_xml_zstd=packed)
    return complete if len(encode(complete)) <= MAX_RAW else metadata


def ova_xml_of(metadata: VmMetadata) -> str | None:
    """The server's own form of `metadata`, if it is there. Raises `FormatError`."""
    if metadata.ova_xml_zstd is None:
        return metadata.ova_xml
    try:
        # What the frame announces is taken at once, whatever limit the decompressor is given.
        if not 0 <= zstandard.frame_content_size(metadata.ova_xml_zstd) <= MAX_OVA:
            raise FormatError("VM metadata", f"ova_xml_zstd: its frame is not of at most {MAX_OVA} bytes")
        return zstandard.ZstdDecompressor().decompress(metadata.ova_xml_zstd).decode()
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise FormatError("VM metadata", f"ova_xml_zstd: {error}") from error


async def export_ova_xml(transfers: Transfers, vm: str) -> bytes:
    """What the pool says about a VM or a snapshot (a ref) in its own format. Raises `ProtocolError`."""
    archive = await transfers.export_metadata(vm)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.extractfile("ova.xml")
            if member is not None:
                return member.read(MAX_OVA + 1)
    except (tarfile.TarError, KeyError) as error:
        raise FormatError("export of metadata", str(error)) from error
    raise FormatError("export of metadata", "its ova.xml is no file")


def has_disks_of(snapshot: Snapshot, saved: VmMetadata, ova_xml: bytes) -> bool:
    """Whether an `ova.xml` of the live VM names the disks that it had when `snapshot` was taken, each on its drive.

    Raises `FormatError`.
    """
    objects = parse_ova(ova_xml).objects
    named = _drives(_records_in(objects, "VBD").values(), _records_in(objects, "VDI"))
    taken = {ref: snapshot.of(ref) for ref in saved.vdis}
    sizes = {ref: {"virtual_size": disk.size} for ref, disk in taken.items() if disk}
    return named == _drives(saved.vbds.values(), {ref: vdi | sizes.get(ref, {}) for ref, vdi in saved.vdis.items()})


def _records_in(objects: Iterable[OvaObject], cls: str) -> dict[str, Record]:
    return {item.id: item.snapshot for item in objects if item.cls == cls}


def _drives(vbds: Iterable[Record], vdis: Mapping[str, Record]) -> set[tuple[str, ...]]:
    """The number of each drive that is for no CDs, and its disk's UUID and size: as text, ova.xml has no numbers."""
    disks = [(vbd, vdis.get(str(vbd.get("VDI")))) for vbd in vbds if vbd.get("type") != "CD"]
    return {
        (str(vbd.get("userdevice")), str(vdi.get("uuid")), str(vdi.get("virtual_size"))) for vbd, vdi in disks if vdi
    }
