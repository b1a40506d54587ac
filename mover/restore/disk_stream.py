"""One disk of a restore point into a VDI: a VHD stream of exactly the length announced, holes left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Literal, Protocol

from mover.events import Emit
from mover.failure import naming
from mover.pipeline.outflow import blocks_in_order
from mover.restore.progress import RestoreProgress
from mover.restore.vhd import vhd_stream
from mover.store import DiskReader, Point, PointDisk, Store
from protocol.arena import Arena
from protocol.extent import Extent, split, total
from protocol.vhd import MAX_SIZE


class Imports(Protocol):
    """What takes the stream: `protocol.xapi.Transfers`."""

    async def import_vdi(
        self, vdi: str, *, format: Literal["raw", "vhd"], length: int, body: AsyncGenerator[bytes | memoryview, None]
    ) -> None:
        """Write `length` bytes, as a disk in `format` (raw or vhd), into the VDI `vdi` (a ref)."""
        ...


async def import_disk(
    store: Store,
    point: Point,
    disk: PointDisk,
    transfers: Imports,
    vdi: str,
    arena: Arena,
    executor: Executor,
    emit: Emit,
) -> None:
    """Write the content of `disk` into the fresh VDI `vdi` (a ref). Raises `PoolError`, `StoreDamagedError`."""
    with naming(f"{point.record.vm_name}, disk {disk.position} ({disk.name}): "):
        await _import(store, point, disk, transfers, vdi, arena, executor, emit)


async def _import(
    store: Store,
    point: Point,
    disk: PointDisk,
    transfers: Imports,
    vdi: str,
    arena: Arena,
    executor: Executor,
    emit: Emit,
) -> None:
    reader = store.disk(disk.root, disk.size)
    loop = asyncio.get_running_loop()
    extents = await loop.run_in_executor(executor, lambda: list(reader.extents()))
    progress = RestoreProgress(point.record.vm_uuid, disk, total(extents), emit)
    if disk.size <= MAX_SIZE:
        length, body = vhd_stream(reader, extents, arena, executor, progress)
        async with aclosing(body):
            await transfers.import_vdi(vdi, format="vhd", length=length, body=body)
    else:
        body = _raw_stream(reader, disk.size, arena, executor, progress)
        async with aclosing(body):
            await transfers.import_vdi(vdi, format="raw", length=disk.size, body=body)
    progress.finish()


async def _raw_stream(
    reader: DiskReader, size: int, arena: Arena, executor: Executor, progress: RestoreProgress
) -> AsyncGenerator[bytes | memoryview, None]:
    whole = split([Extent(0, size)], arena.slot_size)
    async with aclosing(blocks_in_order(reader, whole, arena, executor)) as contents:
        async for block, view in contents:
            yield view
            progress.add(block.length)
