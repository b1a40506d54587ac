"""One disk of a restore point into a VDI: a VHD stream of exactly the length announced, holes left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing

from mover.events import DiskFinished, DiskPlanned, DiskProgress, Emit
from mover.failure import as_mover_error
from mover.pipeline.outflow import blocks_in_order
from mover.store import DiskReader, Point, PointDisk, Store
from protocol.arena import Arena
from protocol.errors import ProtocolError
from protocol.extent import Extent, align, split, total
from protocol.vhd import BLOCK_SIZE, MAX_SIZE, VhdWriter, stream_length
from protocol.xapi import Transfers

_REPORT_EVERY = 0.2


async def import_disk(
    store: Store,
    point: Point,
    disk: PointDisk,
    transfers: Transfers,
    vdi: str,
    arena: Arena,
    executor: Executor,
    emit: Emit,
) -> None:
    """Write the content of `disk` into the fresh VDI `vdi` (a ref). Raises `PoolError`, `StoreDamagedError`."""
    try:
        await _import(store, point, disk, transfers, vdi, arena, executor, emit)
    except ProtocolError as error:
        raise as_mover_error(error, f"{point.record.vm_name}, disk {disk.position} ({disk.name}): ") or error from error


async def _import(
    store: Store,
    point: Point,
    disk: PointDisk,
    transfers: Transfers,
    vdi: str,
    arena: Arena,
    executor: Executor,
    emit: Emit,
) -> None:
    started = time.monotonic()
    reader = store.disk(disk.root, disk.size)
    loop = asyncio.get_running_loop()
    extents = await loop.run_in_executor(executor, lambda: list(reader.extents()))
    vm = point.record.vm_uuid
    to_write = total(extents)
    emit(DiskPlanned(vm=vm, disk=disk.position, name=disk.name, size=disk.size, mode="restore", to_read=to_write))

    def progress(done: int) -> None:
        emit(
            DiskProgress(
                vm=vm, disk=disk.position, done=min(done, to_write), read=done, zero=0, known=0, new=0, stored=0
            )
        )

    if disk.size <= MAX_SIZE:
        blocks = list(_vhd_blocks(extents, disk.size))
        length = stream_length(disk.size, len(blocks))
        body = _vhd_stream(reader, disk.size, blocks, arena, executor, progress)
        async with aclosing(body):
            await transfers.import_vdi(vdi, format="vhd", length=length, body=body)
    else:
        body = _raw_stream(reader, disk.size, arena, executor, progress)
        async with aclosing(body):
            await transfers.import_vdi(vdi, format="raw", length=disk.size, body=body)
    progress(to_write)
    emit(
        DiskFinished(
            vm=vm,
            disk=disk.position,
            name=disk.name,
            mode="restore",
            size=disk.size,
            changed=0,
            read=to_write,
            zero=disk.size - to_write,
            known=0,
            new=0,
            stored=0,
            seconds=time.monotonic() - started,
        )
    )


def _vhd_blocks(extents: list[Extent], size: int) -> list[Extent]:
    """The blocks of a VHD that hold any of `extents`; the last may be cut by the disk's end."""
    return [
        Extent(offset, min(BLOCK_SIZE, size - offset))
        for run in align(extents, BLOCK_SIZE, size)
        for offset in range(run.offset, run.end, BLOCK_SIZE)
    ]


class _Ticker:
    """Calls `report` with the bytes so far, a few times a second."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        self._last = 0.0

    def add(self, length: int) -> None:
        self._done += length
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            self._report(self._done)


async def _vhd_stream(
    reader: DiskReader,
    size: int,
    blocks: list[Extent],
    arena: Arena,
    executor: Executor,
    report: Callable[[int], None],
) -> AsyncGenerator[bytes | memoryview, None]:
    ticker = _Ticker(report)
    writer = VhdWriter(size, [block.offset // BLOCK_SIZE for block in blocks], creator=b"tap\0")
    yield writer.head()
    async with aclosing(blocks_in_order(reader, blocks, arena, executor)) as contents:
        async for block, view in contents:
            yield writer.block_prefix()
            yield view
            if block.length < BLOCK_SIZE:
                yield bytes(BLOCK_SIZE - block.length)
            ticker.add(block.length)
    yield writer.trailer()


async def _raw_stream(
    reader: DiskReader, size: int, arena: Arena, executor: Executor, report: Callable[[int], None]
) -> AsyncGenerator[bytes | memoryview, None]:
    ticker = _Ticker(report)
    whole = split([Extent(0, size)], arena.slot_size)
    async with aclosing(blocks_in_order(reader, whole, arena, executor)) as contents:
        async for block, view in contents:
            yield view
            ticker.add(block.length)
