"""Disks of a restore point into files."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mover.backup.metadata import decode, encode
from mover.errors import NotFoundError, TargetError
from mover.events import Emit
from mover.restore.progress import RestoreProgress
from mover.store import DiskReader, Point, PointDisk, Store
from protocol.arena import Arena
from protocol.extent import Extent, split, total
from protocol.tasks import task_group

_SLOTS = 8


async def restore_to_files(
    store: Store, point: Point, directory: Path, *, disks: Sequence[str] = (), emit: Emit
) -> list[Path]:
    """Write disks of `point` as sparse raw files into `directory`, and the VM's metadata beside them.

    `disks` are positions or names (empty: all). A file appears under its final name only when it is whole; existing
    ones are replaced. Returns the disks' files, in order of position. Raises `NotFoundError`, `StoreDamagedError`,
    `TargetError` if a file cannot be written.
    """
    chosen = choose_disks(point, disks)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"cannot make {directory}: {error.strerror}") from error
    _write_metadata(store, point, directory / f"{_file_name(point.record.vm_name)}.json")
    arena = Arena(_SLOTS)
    files: list[Path] = []
    with ThreadPoolExecutor(os.cpu_count() or 2, "restore") as executor:
        for disk in chosen:
            path = directory / f"{_file_name(point.record.vm_name)}-{_file_name(disk.position)}.raw"
            await _write_raw(store, point, disk, path, arena, executor, emit)
            files.append(path)
    return files


def _write_metadata(store: Store, point: Point, path: Path) -> None:
    """The records of the VM. Firmware variables and TPM contents are in them: nobody else may read the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(decode(store.get_blob(point.record.metadata))))
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def choose_disks(point: Point, wanted: Sequence[str]) -> list[PointDisk]:
    """The disks of `point` whose position, name or VDI UUID is in `wanted` (empty: all), by position."""
    by_position = sorted(point.record.disks, key=lambda disk: (len(disk.position), disk.position))
    if not wanted:
        return by_position
    for name in wanted:
        if not any(name in (disk.position, disk.name, disk.vdi_uuid) for disk in by_position):
            has = ", ".join(f"{disk.position} ({disk.name})" for disk in by_position)
            raise NotFoundError(f"{point.record.vm_name} has no disk {name} in point {point.id}", f"it has {has}")
    return [disk for disk in by_position if {disk.position, disk.name, disk.vdi_uuid} & set(wanted)]


def _file_name(text: str) -> str:
    """`text` as one harmless component of a path."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".") or "vm"


async def _write_raw(
    store: Store,
    point: Point,
    disk: PointDisk,
    path: Path,
    arena: Arena,
    executor: ThreadPoolExecutor,
    emit: Emit,
) -> None:
    reader = store.disk(disk.root, disk.size)
    loop = asyncio.get_running_loop()
    extents = await loop.run_in_executor(executor, lambda: list(reader.extents()))
    progress = RestoreProgress(point.record.vm_uuid, disk, total(extents), emit)
    unfinished = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"cannot write {unfinished}: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, disk.size)
        blocks = split(extents, arena.slot_size)
        async with task_group() as group:
            for _ in range(_SLOTS // 2):
                group.create_task(_copy(reader, blocks, descriptor, arena, executor, progress))
        await loop.run_in_executor(executor, os.fsync, descriptor)
        unfinished.rename(path)
    except OSError as error:
        raise TargetError(f"cannot write {unfinished}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    progress.finish()


async def _copy(
    reader: DiskReader,
    blocks: Iterator[Extent],
    descriptor: int,
    arena: Arena,
    executor: ThreadPoolExecutor,
    progress: RestoreProgress,
) -> None:
    loop = asyncio.get_running_loop()

    def copy(block: Extent, view: memoryview) -> None:
        reader.read_into(block.offset, view)
        written = 0
        while written < block.length:
            written += os.pwrite(descriptor, view[written:], block.offset + written)

    for block in blocks:
        slot = await arena.acquire()
        copying = loop.run_in_executor(executor, copy, block, slot[: block.length])
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            await asyncio.wait([copying])
            raise
        finally:
            arena.release(slot)
        progress.add(block.length)
