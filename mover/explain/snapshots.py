"""Which snapshots of a VM stand on the pool, whose they are, and what becomes of them. A pure function of records."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from mover.backup.records import PoolRecords
from mover.backup.tags import PREFIX, Owner
from mover.job import SelectedVm
from mover.job.select import Record

# What other backup programs write into other_config of their snapshots.
_OTHERS = {"xo:backup": "Xen Orchestra", "xo:": "Xen Orchestra", "alike": "Alike", "XenBackup": "XenBackup"}

_GOES_ON = "left by a run that was killed: the next one goes on with it"
_BASE = "base of the next incremental"
_REMOVED = "removed by the next run"


class KeptSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a VM, or of one of its disks without its VM (`cbt_metadata` disks have none).

    `taken` is the pool's time as it gives it. `owner` says whose it is, `fate` what the next run does with it.
    """

    kind: Literal["VM", "disk"]
    uuid: str
    name: str
    taken: str
    data: bool
    owner: str
    fate: str


def snapshots_of(
    vm: SelectedVm, owner: Owner | None, bases: Collection[str], left: str | None, records: PoolRecords
) -> list[KeptSnapshot]:
    """The snapshots of `vm`, oldest first.

    `bases` are UUIDs of the snapshots that the next run starts from, `left` that of the one that a killed run has left
    and the next one takes in place of a new one.
    """
    found = _find(vm, owner, bases, left, records)
    return sorted(found, key=lambda snapshot: (snapshot.taken, snapshot.uuid))


def _find(
    vm: SelectedVm, owner: Owner | None, bases: Collection[str], left: str | None, records: PoolRecords
) -> Iterator[KeptSnapshot]:
    vms, vdis = records.vms, records.vdis
    inherited = vms.get(vm.ref, {}).get("other_config", {})
    seen: set[str] = set()
    for record in vms.values():
        if not record["is_a_snapshot"] or record["snapshot_of"] != vm.ref:
            continue
        disks = records.disks_of(record)
        seen.update(disks)
        is_base = any(vdis[disk]["uuid"] in bases for disk in disks)
        fate = _GOES_ON if record["uuid"] == left else _BASE if is_base else _REMOVED
        yield _kept("VM", record, vm, owner, inherited, data=True, fate=fate)
    live = {disk.vdi for disk in (*vm.disks, *vm.excluded_disks)}
    for ref, record in vdis.items():
        if record["is_a_snapshot"] and record["snapshot_of"] in live and ref not in seen:
            data = record["type"] != "cbt_metadata"
            fate = _BASE if record["uuid"] in bases else _REMOVED
            yield _kept("disk", record, vm, owner, inherited, data=data, fate=fate)


def _kept(
    kind: Literal["VM", "disk"],
    record: Record,
    vm: SelectedVm,
    owner: Owner | None,
    inherited: Mapping[str, str],
    *,
    data: bool,
    fate: str,
) -> KeptSnapshot:
    """`fate` is that of a snapshot of ours; others are left alone."""
    ours = owner is not None and (
        owner.owns(record["other_config"], vm.uuid) or (kind == "VM" and owner.named(record["name_label"]))
    )
    return KeptSnapshot(
        kind=kind,
        uuid=record["uuid"],
        name=record["name_label"],
        taken=record["snapshot_time"],
        data=data,
        owner="this job" if ours else _whose(record["other_config"], inherited),
        fate=fate if ours else "left alone",
    )


def _whose(other_config: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    if job := other_config.get(f"{PREFIX}job"):
        return f"mover's job {job} with the store {other_config.get(f'{PREFIX}store', '?')[:8]}"
    own = [key for key in other_config if key not in inherited]
    for prefix, product in _OTHERS.items():
        if any(key.startswith(prefix) for key in own):
            return product
    return "nobody says: a person, or a schedule of the pool"
