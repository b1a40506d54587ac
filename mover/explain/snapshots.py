"""Which snapshots of a VM stand on the pool, whose they are, and what becomes of them. A pure function of records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

from mover.backup.records import PoolRecords
from mover.backup.tags import Owner, claimed
from mover.job import SelectedVm
from mover.job.select import Record

# What other backup programs write into other_config of their snapshots.
_OTHERS = {"xo:backup": "Xen Orchestra", "xo:": "Xen Orchestra", "alike": "Alike", "XenBackup": "XenBackup"}

_GOES_ON = "left by a run that was killed: the next one goes on with it"
_BASE = "base of the next incremental"
_REMOVED = "removed by the next run"
_USED = "stays as long as another VM uses it"


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

    def kept(kind: Literal["VM", "disk"], record: Record, made: Callable[[Owner], bool], fate: str) -> KeptSnapshot:
        """`fate` is that of a snapshot of ours; others are left alone."""
        maker = next((one for one in (owner, claimed(record["other_config"])) if one and made(one)), None)
        ours = maker is not None and maker == owner
        return KeptSnapshot(
            kind=kind,
            uuid=record["uuid"],
            name=record["name_label"],
            taken=record["snapshot_time"],
            data=kind == "VM" or record["type"] != "cbt_metadata",
            owner="this job" if ours else _whose(maker, record["other_config"], inherited),
            fate=fate if ours else "left alone",
        )

    snapshots = {ref: one for ref, one in vms.items() if one["is_a_snapshot"] and one["snapshot_of"] == vm.ref}
    seen: set[str] = set()
    for record in snapshots.values():
        disks = records.disks_of(record)
        seen.update(disks)
        fate = _GOES_ON if record["uuid"] == left else _fate(disks, bases, snapshots, records)
        yield kept("VM", record, partial(Owner.owns_vm, record=record, vm=vm.uuid, live=vm.uuid), fate)
    live = {disk.vdi for disk in (*vm.disks, *vm.excluded_disks)}
    for ref, record in vdis.items():
        if record["is_a_snapshot"] and record["snapshot_of"] in live and ref not in seen:
            fate = _fate([ref], bases, snapshots, records)
            yield kept("disk", record, partial(Owner.owns_disk, record=record, vm=vm.uuid), fate)


def _fate(disks: Sequence[str], bases: Collection[str], snapshots: Collection[str], records: PoolRecords) -> str:
    """What the next run does with these disks, if they are ours. `snapshots` are the VMs (refs) made of this one."""
    if any(records.vdis[disk]["uuid"] in bases for disk in disks):
        return _BASE
    drives = [records.vbds[vbd]["VM"] for disk in disks for vbd in records.vdis[disk]["VBDs"] if vbd in records.vbds]
    users = [records.vms[ref] for ref in drives if ref in records.vms and ref not in snapshots]
    return _REMOVED if all(user["is_control_domain"] for user in users) else _USED


def _whose(maker: Owner | None, other_config: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    if maker is not None:
        return f"mover's job {maker.job} with the store {maker.store[:8]}"
    own = [key for key in other_config if key not in inherited]
    for prefix, product in _OTHERS.items():
        if any(key.startswith(prefix) for key in own):
            return product
    return "nobody says: a person, or a schedule of the pool"
