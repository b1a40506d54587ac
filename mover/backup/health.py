"""Is the storage fit for a snapshot? Looked at before one is taken: one too many can stop every VM of a repository."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mover.backup.records import PoolRecords, parent_of
from mover.backup.session import Session
from mover.errors import UnfitStorageError
from mover.events import Note
from mover.job import SelectedDisk, SelectedVm
from mover.job.select import Record
from mover.units import GiB, format_size

# The storage manager takes no snapshot of a chain of 30 (SR_BACKEND_FAILURE_109; sm libs/sm/vhdutil.py).
CHAIN_LIMIT = 30
LONG_CHAIN = 20
# One image waits to be coalesced after every snapshot that was removed; more means that the SR does not keep up.
_MANY_WAITING = 3
# On these a snapshot takes the disk's whole size at once (thick provisioning).
_THICK = frozenset({"lvm", "lvmoiscsi", "lvmohba", "lvmofcoe"})
_TIGHT = 10 * GiB
# With less than this, what guests write next may find no room whether there is a snapshot or not.
_NOTHING = 1 * GiB


class Chain(NamedTuple):
    """How many images a reader of a disk goes through, whether that is `exact` or an upper bound, and how many of them
    are `waiting` to be merged with the one above."""

    depth: int
    exact: bool
    waiting: int


def chain_of(records: PoolRecords, vdi: str) -> Chain:
    """The chain of a live VDI (a ref).

    SRs of the VHD kind name the parent of an image. Where they do not, each snapshot that stands is at most one more.
    """
    depth, waiting = 1, 0
    parent = parent_of(records.vdis.get(vdi, {}))
    while parent in records.vdi_by_uuid and depth <= CHAIN_LIMIT:
        image = records.vdi_by_uuid[parent]
        waiting += not image.get("managed", True) and records.children[parent] == 1
        depth, parent = depth + 1, parent_of(image)
    if depth > 1:
        return Chain(depth, True, waiting)
    snapshots = [record for record in records.vdis.values() if record["is_a_snapshot"] and record["snapshot_of"] == vdi]
    return Chain(1 + sum(record["type"] != "cbt_metadata" for record in snapshots), False, 0)


class Room(NamedTuple):
    """Bytes `free` in a storage repository, what a snapshot may want of them, and below what there is `none` left."""

    free: int
    wanted: int
    none: int


def room_in(sr: Record, size: int) -> Room | None:
    """Whether a snapshot of a disk of `size` bytes fits into an SR; None if the SR does not say how large it is."""
    whole, used = int(sr.get("physical_size", -1)), int(sr.get("physical_utilisation", -1))
    if whole <= 0 or used < 0:
        return None
    wanted = size if sr.get("type") in _THICK else min(_TIGHT, whole // 10)
    return Room(max(whole - used, 0), wanted, min(_NOTHING, whole // 100))


async def require_fit_storage(session: Session, vm: SelectedVm) -> None:
    """Warn of long chains and little space. Raises `UnfitStorageError` where a snapshot cannot or must not be taken."""
    for disk in vm.disks:
        for message in _chain(session.records, vm, disk):
            session.emit(Note(level="warning", vm=vm.uuid, disk=disk.position, message=message))
    disks: dict[str, list[SelectedDisk]] = {}
    for disk in vm.disks:
        disks.setdefault(str(session.records.vdis[disk.vdi]["SR"]), []).append(disk)
    for ref, on_it in disks.items():
        sr = await session.pool.call("SR.get_record", ref)
        for message in _space(vm, sr, sum(disk.size for disk in on_it)):
            session.emit(Note(level="warning", vm=vm.uuid, message=message))


def _chain(records: PoolRecords, vm: SelectedVm, disk: SelectedDisk) -> Iterator[str]:
    chain = chain_of(records, disk.vdi)
    if chain.exact and chain.depth >= CHAIN_LIMIT:
        raise UnfitStorageError(
            f"{vm.name}, disk {disk.position} ({disk.name}): its chain has {chain.depth} images, and at {CHAIN_LIMIT} "
            "the pool takes no more snapshots of it",
            "delete snapshots of the VM and let the SR coalesce (xe sr-scan)",
        )
    if chain.depth >= LONG_CHAIN:
        yield (
            f"the chain of {disk.name} has {'' if chain.exact else 'up to '}{chain.depth} images; at {CHAIN_LIMIT} "
            "the pool takes no more snapshots of it: delete some and let the SR coalesce"
        )
    elif chain.waiting >= _MANY_WAITING:
        yield f"{chain.waiting} images of the chain of {disk.name} wait to be coalesced: the SR does not keep up"


def _space(vm: SelectedVm, sr: Record, size: int) -> Iterator[str]:
    room = room_in(sr, size)
    if room is None:
        return
    name = sr.get("name_label", "?")
    if room.free < room.none:
        raise UnfitStorageError(
            f"{vm.name}: the SR {name} has {format_size(room.free)} free: a snapshot could stop every VM on it",
            "make room there, or delete snapshots and let the SR coalesce (xe sr-scan)",
        )
    if room.free < room.wanted:
        yield f"the SR {name} has {format_size(room.free)} free, and a snapshot may want {format_size(room.wanted)}"
