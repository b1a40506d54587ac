"""Look at a job's VMs, its store and its pool, and say what the next run would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mover.backup.base import bases
from mover.backup.cbt import Left, left_to_go_on
from mover.backup.records import PoolRecords, read_records
from mover.backup.snapshot import WITH_MEMORY
from mover.backup.tags import Owner
from mover.backup.unfinished import newest_of, notes_of
from mover.errors import StoreMissingError
from mover.explain.outlook import DiskOutlook, VmOutlook, outlook, together
from mover.explain.snapshots import snapshots_of
from mover.history import by_vm
from mover.job import Job, SelectedVm
from mover.run import chosen_schedule, join_pool, selected_of, with_mode
from mover.storage import open_store
from mover.store import PartialName, PartialRun, Point, Store
from protocol.xapi import Pool


@dataclass(frozen=True)
class Stored:
    """What the job's store says of its VMs, read once: nothing, if there is no store yet.

    `points` are those of each VM (by UUID), oldest first; `lost` the roots of states that are not all there; `notes`
    what killed runs have noted down; `owner` whose snapshots are ours.
    """

    points: Mapping[str, Sequence[Point]]
    lost: frozenset[bytes]
    notes: Sequence[tuple[PartialName, PartialRun]]
    owner: Owner | None
    chunk_size: int


def stored_of(job: Job, store: Store | None) -> Stored:
    """Read it. Raises what the store raises."""
    if store is None:
        return Stored({}, frozenset(), [], None, job.store.chunk_size)
    owner = Owner(job.name, store.config.store_id)
    points = by_vm(store.readable_points()[0])
    return Stored(points, store.lost_roots(), notes_of(store, job.name), owner, store.chunk_size)


async def explain(
    job: Job, *, schedule: str | None = None, vms: Sequence[str] = (), full: bool = False
) -> list[VmOutlook]:
    """What `run_job` would do, without doing any of it. Raises as `run_job` does."""
    chosen = chosen_schedule(job, schedule)
    store = _store(job)
    async with join_pool(job.pool) as (pool, _):
        records = await read_records(pool)
        selected = [with_mode(vm, chosen, full=full) for vm in selected_of(job, records, vms, lambda message: None)]
        stored = stored_of(job, store)
        return [await look_ahead(pool, stored, vm, records) for vm in selected]


async def look_ahead(pool: Pool, stored: Stored, vm: SelectedVm, records: PoolRecords) -> VmOutlook:
    """What a run would do with `vm`. Raises what `Pool.call` raises."""
    points = stored.points.get(vm.uuid, [])
    left = await _left(pool, stored, vm, points)
    disks = [
        await outlook(pool, vm, disk, points, stored.lost, records.vbds, stored.chunk_size, left) for disk in vm.disks
    ]
    if vm.backup.strategy == "xva":
        disks = together(disks)
    goes_on_with = left.taken.uuid if left else None
    return VmOutlook(
        uuid=vm.uuid,
        name=vm.name,
        strategy=vm.backup.strategy,
        mode=vm.backup.mode,
        last_point=points[-1].id if points else None,
        refused=_refused(vm, disks),
        disks=disks,
        excluded=[f"{disk.position} ({disk.name})" for disk in vm.excluded_disks],
        memory=vm.backup.memory and records.vms.get(vm.ref, {}).get("power_state") in WITH_MEMORY,
        goes_on_with=goes_on_with,
        snapshots=snapshots_of(vm, stored.owner, bases(points), goes_on_with, records),
    )


async def _left(pool: Pool, stored: Stored, vm: SelectedVm, points: Sequence[Point]) -> Left | None:
    """What a killed run has left of the VM that the next one would go on with."""
    if stored.owner is None or vm.backup.strategy != "cbt":
        return None
    return await left_to_go_on(pool, stored.owner, newest_of(stored.notes, vm.uuid), vm, points, stored.lost)


def _refused(vm: SelectedVm, disks: Sequence[DiskOutlook]) -> str | None:
    if vm.backup.mode != "incremental":
        return None
    stop = next((disk for disk in disks if disk.mode == "full"), None)
    if stop is None:
        return None
    return f"the job allows incrementals only, and for disk {stop.position} {stop.reason}"


def _store(job: Job) -> Store | None:
    try:
        return open_store(job.store)
    except StoreMissingError:
        return None
