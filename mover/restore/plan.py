"""What a restore to a pool will make, decided before anything is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mover.backup.metadata import VmMetadata
from mover.errors import NotFoundError
from mover.restore.choice import choose_disks
from mover.restore.networks import match_networks
from mover.restore.options import RestoreOptions
from mover.restore.vm_record import NULL, Record
from mover.store import MEMORY, Point, PointDisk
from protocol.errors import XapiError
from protocol.xapi import Pool


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first object is made.

    `twin` says of which VM on the pool the new one would be a second one, "" if of none.
    `networks` maps saved refs to those of the pool, `srs` UUIDs of VDIs to the ref of the SR where the new one goes,
    `discs` positions of CD drives to the VDI (a ref) in them, where the pool still has it.
    """

    name: str
    twin: str
    new_macs: bool
    networks: dict[str, str]
    srs: dict[str, str]
    disks: list[PointDisk]
    discs: dict[str, str]
    memory: PointDisk | None = None


async def plan_restore(point: Point, saved: VmMetadata, pool: Pool, options: RestoreOptions) -> Plan:
    """Look at the pool and decide. Raises `NotFoundError` for networks, SRs or disks that do not exist."""
    chosen = choose_disks(point, options.disks)
    disks = [disk for disk in chosen if disk.position != MEMORY]
    memory = next((disk for disk in chosen if disk.position == MEMORY), None)
    twin = await _twin(pool, point.record.vm_uuid, saved)
    new_macs = bool(twin) if options.new_macs is None else options.new_macs
    name = options.name or point.record.vm_name
    if twin and not options.name:
        taken = datetime.fromtimestamp(point.record.created, UTC)
        name = f"{name} (restored {taken:%Y-%m-%d %H:%M:%S})"
    networks = match_networks(
        saved.networks,
        saved.pifs,
        await pool.call("network.get_all_records"),
        await pool.call("PIF.get_all_records"),
        options.networks,
    )
    srs = await choose_srs(saved, pool, chosen, options.sr)
    return Plan(name, twin, new_macs, networks, srs, disks, await _discs(saved, pool), memory)


async def _twin(pool: Pool, uuid: str, saved: VmMetadata) -> str:
    """Which VM of the pool is the saved one, or has its addresses, in words; "" if none.

    By its UUID alone a VM that was restored is another one: the API chooses a new one.
    """
    if await _by_uuid(pool, "VM", uuid) is not None:
        return "the VM is still on the pool"
    records: dict[str, Record] = await pool.call("VM.get_all_records")
    vms = {ref: vm for ref, vm in records.items() if not (vm["is_a_template"] or vm["is_a_snapshot"])}
    macs = {vif["MAC"].lower() for vif in saved.vifs.values()}
    vifs: dict[str, Record] = await pool.call("VIF.get_all_records")
    for vif in vifs.values():
        if vif["VM"] in vms and vif["MAC"].lower() in macs:
            return f"{_called(vms[vif['VM']])} has the MAC address {vif['MAC']}"
    seed = saved.vm["other_config"].get("mac_seed")
    same = (vm for vm in vms.values() if seed and vm["other_config"].get("mac_seed") == seed)
    return next((f"{_called(vm)} has the same MAC seed" for vm in same), "")


def _called(vm: Record) -> str:
    return f"the VM {vm['name_label']} ({vm['uuid']}) on the pool"


async def _discs(saved: VmMetadata, pool: Pool) -> dict[str, str]:
    found: dict[str, str] = {}
    for vbd in saved.vbds.values():
        disc = saved.vdis.get(vbd["VDI"]) if vbd["type"] == "CD" else None
        ref = await _by_uuid(pool, "VDI", disc["uuid"]) if disc else None
        if ref is not None:
            found[vbd["userdevice"]] = ref
    return found


async def _by_uuid(pool: Pool, kind: str, uuid: str) -> str | None:
    try:
        return str(await pool.call(f"{kind}.get_by_uuid", uuid))
    except XapiError as error:
        if error.code != "UUID_INVALID":
            raise
        return None


async def choose_srs(saved: VmMetadata, pool: Pool, disks: list[PointDisk], wanted: str | None) -> dict[str, str]:
    """By VDI UUID, the SR for each disk: the one asked for, else its old one, the only one of its name, or the default.

    Raises `NotFoundError`.
    """
    present: dict[str, Record] = await pool.call("SR.get_all_records")
    by_uuid = {record["uuid"]: ref for ref, record in present.items()}
    if wanted is not None:
        asked = _sr(present, wanted)
        return {disk.vdi_uuid: asked for disk in disks}
    pools: dict[str, Record] = await pool.call("pool.get_all_records")
    default = next(iter(pools.values()))["default_SR"]
    chosen: dict[str, str] = {}
    for disk in disks:
        vdi = _saved_vdi(saved, disk)
        old = saved.srs.get(vdi.get("SR", NULL), {})
        named = [ref for ref, record in present.items() if record["name_label"] == old.get("name_label")]
        alike = named[0] if len(named) == 1 else str(default)
        chosen[disk.vdi_uuid] = by_uuid.get(old.get("uuid", ""), alike)
        if chosen[disk.vdi_uuid] not in present:
            raise NotFoundError(f"the SR of {disk.name} is gone and the pool has no default SR", "name one with --sr")
    return chosen


def _sr(present: dict[str, Record], wanted: str) -> str:
    """The SR with this UUID or name: each host of a pool may have one called "Local storage"."""
    found = [ref for ref, record in present.items() if wanted == record["uuid"]]
    found = found or [ref for ref, record in present.items() if wanted == record["name_label"]]
    if len(found) > 1:
        uuids = ", ".join(sorted(present[ref]["uuid"] for ref in found))
        raise NotFoundError(f"the pool has {len(found)} SRs called {wanted}", f"name one by its UUID: {uuids}")
    if not found:
        names = ", ".join(sorted(record["name_label"] for record in present.values()))
        raise NotFoundError(f"the pool has no SR {wanted}", f"it has {names}")
    return found[0]


def _saved_vdi(saved: VmMetadata, disk: PointDisk) -> Record:
    if disk.position == MEMORY and saved.suspended is not None:
        return saved.suspended.vdi
    return next((vdi for vdi in saved.vdis.values() if vdi["uuid"] == disk.vdi_uuid), {})
