"""A restore point against the pool: is what is stored what the snapshots hold that are still there?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import msgspec

from mover.failure import as_mover_error
from mover.restore.difference import differences
from mover.store import MEMORY, Point, PointDisk, Store
from protocol.arena import Arena
from protocol.errors import ProtocolError, XapiError
from protocol.extent import total
from protocol.xapi import Pool, Transfers

_SLOTS = 24
_SLOT = 2 << 20
# How many differing parts are named: one that is wrong everywhere must not fill the screen.
_NAMED = 100


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One disk. `differing` are bytes, `parts` where the first of them are (offset, length).

    `problem` says why the disk could not be compared.
    """

    position: str
    name: str
    snapshot: str | None
    differing: int = 0
    parts: list[tuple[int, int]] = []
    problem: str | None = None


async def compare_with_pool(store: Store, point: Point, pool: Pool, transfers: Transfers) -> list[Compared]:
    """Read the snapshot of each disk of `point` and compare it, chunk by chunk, with what is stored.

    Of the store the tree is read: that chunks are what their ids say, `mover verify --deep` tells. Raises `PoolError`
    and the like naming the disk, `StoreDamagedError`.
    """
    slot = max(_SLOT, store.chunk_size)
    arena = Arena(max(_SLOTS * _SLOT // slot, 2), slot)
    with ThreadPoolExecutor(os.cpu_count() or 2, "compare") as executor:
        return [
            await _compare(store, point, disk, pool, transfers, arena, executor)
            for disk in point.record.disks
            if disk.position != MEMORY
        ]


async def _compare(
    store: Store,
    point: Point,
    disk: PointDisk,
    pool: Pool,
    transfers: Transfers,
    arena: Arena,
    executor: Executor,
) -> Compared:
    about = Compared(position=disk.position, name=disk.name, snapshot=disk.snapshot_uuid)
    try:
        ref, problem = await _snapshot(pool, disk)
        if problem is not None:
            return msgspec.structs.replace(about, problem=problem)
        reader = store.disk(disk.root, disk.size)
        found = await differences(pool, transfers, ref, disk.size, reader, arena, executor)
    except ProtocolError as error:
        name = f"{point.record.vm_name}, disk {disk.position} ({disk.name}): "
        raise as_mover_error(error, name) or error from error
    parts = [(extent.offset, extent.length) for extent in found[:_NAMED]]
    return msgspec.structs.replace(about, differing=total(found), parts=parts)


async def _snapshot(pool: Pool, disk: PointDisk) -> tuple[str, str | None]:
    """The snapshot of this very state (a ref), or why it is not to be had."""
    if disk.snapshot_uuid is None:
        return "", "no snapshot of this state was kept"
    try:
        ref = await pool.call("VDI.get_by_uuid", disk.snapshot_uuid)
        record = await pool.call("VDI.get_record", ref)
    except XapiError as error:
        if error.code not in {"UUID_INVALID", "HANDLE_INVALID"}:
            raise
        return "", "its snapshot is gone from the pool"
    if record["type"] == "cbt_metadata":
        return "", "of its snapshot only the CBT log is left"
    if int(record["virtual_size"]) != disk.size:
        return "", f"its snapshot has {record['virtual_size']} bytes, and the disk {disk.size}"
    return ref, None


def all_compared(found: Sequence[Compared]) -> bool:
    """Whether no disk was left out."""
    return all(disk.problem is None for disk in found)
