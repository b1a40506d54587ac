"""Single disks of a restore point onto a pool: as new VDIs of no VM, or over one that is there already."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing

from mover.backup.metadata import decode
from mover.errors import NotFoundError, PoolError, UsageError
from mover.events import Emit, Note
from mover.failure import as_mover_error, naming
from mover.pipeline.outflow import blocks_in_order
from mover.restore.choice import choose_disks
from mover.restore.difference import differences
from mover.restore.disk_stream import import_disk
from mover.restore.plan import choose_srs
from mover.restore.progress import RestoreProgress
from mover.restore.undo import make_vdi, undone_on_failure
from mover.restore.vm_record import Record, vdi_arguments
from mover.store import DiskReader, Point, PointDisk, Store
from mover.units import format_size
from protocol.arena import Arena
from protocol.errors import XapiError
from protocol.extent import Extent, split, total
from protocol.xapi import Pool, Transfers
from protocol.xapi.wire import END_OF_FRAMES, frame_head, framed_length

_SLOTS = 24
_SLOT = 2 << 20
# The control domain lets go of a disk a while after it was read.
_IN_USE_TRIES = 30
_IN_USE_WAIT = 2.0


async def restore_as_vdis(
    store: Store,
    point: Point,
    pool: Pool,
    transfers: Transfers,
    disks: Sequence[str],
    sr: str | None,
    emit: Emit,
    *,
    keep_partial: bool = False,
) -> dict[str, str]:
    """Make a VDI of each of `disks` (positions, names or UUIDs; empty: all) that belongs to no VM; UUIDs by position.

    Raises `NotFoundError` before anything is made, `StoreDamagedError`, `PoolError`.
    """
    chosen = choose_disks(point, disks)
    saved = decode(store.get_blob(point.record.metadata))
    srs = await choose_srs(saved, pool, chosen, sr)
    by_uuid = {vdi["uuid"]: vdi for vdi in saved.vdis.values()}
    made: dict[str, str] = {}
    async with undone_on_failure(pool, emit, keep=keep_partial) as undo:
        with ThreadPoolExecutor(max(os.cpu_count() or 2, store.readers), "restore") as executor:
            for disk in chosen:
                record = by_uuid.get(disk.vdi_uuid, {"name_label": disk.name})
                with naming(f"{point.record.vm_name}, disk {disk.position} ({disk.name}): "):
                    vdi = await make_vdi(pool, undo, vdi_arguments(record, srs[disk.vdi_uuid], disk.size))
                await import_disk(store, point, disk, transfers, vdi, Arena(_SLOTS), executor, emit)
                made[disk.position] = str(await pool.call("VDI.get_uuid", vdi))
    return made


async def restore_into(
    store: Store, point: Point, pool: Pool, transfers: Transfers, disks: Sequence[str], target: str, emit: Emit
) -> int:
    """Make the VDI with the UUID `target` hold what the one disk in `disks` held; the bytes that were written.

    Only chunks that differ are written. Interrupted, it can be repeated. Raises `UsageError` unless it is one disk and
    the VDI can take it, `NotFoundError`, `StoreDamagedError`, `PoolError`.
    """
    chosen = choose_disks(point, disks)
    if len(chosen) != 1:
        raise UsageError(f"--into takes one disk, not {len(chosen)}", "name it with --disk")
    (disk,) = chosen
    vdi, record = await _target(pool, target)
    size = int(record["virtual_size"])
    _refuse_unfit(target, record, disk)
    await _refuse_attached(pool, target, record)
    if size > disk.size:
        message = f"the VDI is larger than the disk was: its last {format_size(size - disk.size)} stay as they are"
        emit(Note(level="warning", vm=point.record.vm_uuid, disk=disk.position, message=message))
    with naming(f"{point.record.vm_name}, disk {disk.position} ({disk.name}) into {target}: "):
        return await _overwrite(store, point, disk, pool, transfers, vdi, size, emit)


async def _target(pool: Pool, uuid: str) -> tuple[str, Record]:
    try:
        vdi = str(await pool.call("VDI.get_by_uuid", uuid))
        record: Record = await pool.call("VDI.get_record", vdi)
    except XapiError as error:
        if error.code not in ("UUID_INVALID", "HANDLE_INVALID"):
            raise as_mover_error(error) or error from error
        raise NotFoundError(f"the pool has no VDI {uuid}") from error
    return vdi, record


async def _refuse_attached(pool: Pool, uuid: str, record: Record) -> None:
    """The control domain holds on to what was read a moment ago, and lets go by itself."""
    for ref in record["VBDs"]:
        vbd: Record = await pool.call("VBD.get_record", ref)
        if vbd["currently_attached"] and not await pool.call("VM.get_is_control_domain", vbd["VM"]):
            raise PoolError(f"the VDI {uuid} ({record['name_label']}) is attached", "shut its VM down, or detach it")


def _refuse_unfit(uuid: str, record: Record, disk: PointDisk) -> None:
    size = int(record["virtual_size"])
    reason = (
        "is a snapshot"
        if record["is_a_snapshot"]
        else "is read-only"
        if record["read_only"]
        else f"has {format_size(size)}, and the disk {format_size(disk.size)}"
        if size < disk.size
        else None
    )
    if reason is not None:
        raise UsageError(f"the VDI {uuid} ({record['name_label']}) {reason}", "--as-vdi makes a new one")


async def _overwrite(
    store: Store, point: Point, disk: PointDisk, pool: Pool, transfers: Transfers, vdi: str, size: int, emit: Emit
) -> int:
    reader = store.disk(disk.root, disk.size)
    slot = max(_SLOT, store.chunk_size)
    arena = Arena((_SLOTS * _SLOT) // slot, slot)
    with ThreadPoolExecutor(max(os.cpu_count() or 2, store.readers), "restore") as executor:
        extents = await differences(pool, transfers, vdi, size, reader, arena, executor)
        progress = RestoreProgress(point.record.vm_uuid, disk, total(extents), emit)
        if extents:
            await _when_free(transfers, vdi, reader, extents, arena, executor, progress)
        progress.finish()
    return total(extents)


async def _when_free(
    transfers: Transfers,
    vdi: str,
    reader: DiskReader,
    extents: Sequence[Extent],
    arena: Arena,
    executor: Executor,
    progress: RestoreProgress,
) -> None:
    pieces = list(split(extents, arena.slot_size))
    length = framed_length(piece.length for piece in pieces)
    for tries_left in reversed(range(_IN_USE_TRIES)):
        try:
            async with aclosing(_frames(reader, pieces, arena, executor, progress)) as body:
                await transfers.import_vdi(vdi, format="raw", length=length, body=body, chunked=True)
            return
        except XapiError as error:
            if error.code != "VDI_IN_USE" or not tries_left:
                raise
        await asyncio.sleep(_IN_USE_WAIT)


async def _frames(
    reader: DiskReader, pieces: Sequence[Extent], arena: Arena, executor: Executor, progress: RestoreProgress
) -> AsyncGenerator[bytes | memoryview, None]:
    """The servers' own framing: each piece behind its offset and length."""
    async with aclosing(blocks_in_order(reader, pieces, arena, executor)) as contents:
        async for piece, view in contents:
            yield frame_head(piece.offset, piece.length)
            yield view
            progress.add(piece.length)
    yield END_OF_FRAMES
