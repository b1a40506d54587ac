"""Disks of a restore point into files."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Literal, TypeVarTuple

from mover.backup.metadata import decode, encode
from mover.errors import TargetError, UsageError
from mover.events import Emit
from mover.restore.choice import choose_disks
from mover.restore.progress import RestoreProgress
from mover.restore.vhd import vhd_stream
from mover.store import DiskReader, Point, PointDisk, Store
from mover.units import format_size
from protocol.arena import Arena
from protocol.extent import Extent, split, total
from protocol.tasks import task_group
from protocol.vhd import MAX_SIZE

_SLOTS = 8

Format = Literal["raw", "vhd"]
_Arguments = TypeVarTuple("_Arguments")


async def restore_to_files(
    store: Store, point: Point, directory: Path, *, disks: Sequence[str] = (), form: Format = "raw", emit: Emit
) -> list[Path]:
    """Write disks of `point` as sparse raw files or dynamic VHDs into `directory`, and the VM's metadata beside them.

    `disks` are positions or names (empty: all). A file appears under its final name only when it is whole; existing
    ones are replaced. Returns the disks' files, in order of position. Raises `NotFoundError`, `StoreDamagedError`,
    `TargetError` if a file cannot be written, `UsageError` if a disk is too large for the format.
    """
    chosen = choose_disks(point, disks)
    if form == "vhd":
        _refuse_too_large(point, chosen)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"cannot make {directory}: {error.strerror}") from error
    _write_metadata(store, point, directory / f"{_file_name(point.record.vm_name)}.json")
    arena = Arena(_SLOTS)
    files: list[Path] = []
    with ThreadPoolExecutor(os.cpu_count() or 2, "restore") as executor:
        for disk in chosen:
            path = directory / f"{_file_name(point.record.vm_name)}-{_file_name(disk.position)}.{form}"
            await _write_disk(store, point, disk, path, form, arena, executor, emit)
            files.append(path)
    return files


def _refuse_too_large(point: Point, disks: Sequence[PointDisk]) -> None:
    for disk in disks:
        if not 0 < disk.size <= MAX_SIZE:
            raise UsageError(
                f"{point.record.vm_name}, disk {disk.position} ({disk.name}): "
                f"a VHD holds at most {format_size(MAX_SIZE)}, not {format_size(disk.size)}",
                "--format raw has no limit",
            )


def _write_metadata(store: Store, point: Point, path: Path) -> None:
    """The records of the VM. Firmware variables and TPM contents are in them: nobody else may read the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(decode(store.get_blob(point.record.metadata))))
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def _file_name(text: str) -> str:
    """`text` as one harmless component of a path."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".") or "vm"


async def _write_disk(
    store: Store,
    point: Point,
    disk: PointDisk,
    path: Path,
    form: Format,
    arena: Arena,
    executor: ThreadPoolExecutor,
    emit: Emit,
) -> None:
    """Write one disk under another name first, then give it its own."""
    reader = store.disk(disk.root, disk.size)
    loop = asyncio.get_running_loop()
    extents = await loop.run_in_executor(executor, lambda: list(reader.extents()))
    progress = RestoreProgress(point.record.vm_uuid, disk, total(extents), emit)
    write = _write_vhd if form == "vhd" else _write_raw
    unfinished = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"cannot write {unfinished}: {error.strerror}") from error
    try:
        await write(reader, extents, descriptor, arena, executor, progress)
        await loop.run_in_executor(executor, os.fsync, descriptor)
        unfinished.rename(path)
    except OSError as error:
        raise TargetError(f"cannot write {unfinished}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    progress.finish()


async def _write_raw(
    reader: DiskReader,
    extents: list[Extent],
    descriptor: int,
    arena: Arena,
    executor: ThreadPoolExecutor,
    progress: RestoreProgress,
) -> None:
    os.ftruncate(descriptor, reader.size)
    blocks = split(extents, arena.slot_size)
    async with task_group() as group:
        for _ in range(_SLOTS // 2):
            group.create_task(_copy(reader, blocks, descriptor, arena, executor, progress))


async def _write_vhd(
    reader: DiskReader,
    extents: list[Extent],
    descriptor: int,
    arena: Arena,
    executor: ThreadPoolExecutor,
    progress: RestoreProgress,
) -> None:
    offset = 0
    length, parts = vhd_stream(reader, extents, arena, executor, progress)
    async with aclosing(parts):
        async for part in parts:
            await _in_thread(executor, _write, descriptor, memoryview(part), offset)
            offset += len(part)
    assert offset == length


async def _copy(
    reader: DiskReader,
    blocks: Iterator[Extent],
    descriptor: int,
    arena: Arena,
    executor: ThreadPoolExecutor,
    progress: RestoreProgress,
) -> None:
    def copy(block: Extent, view: memoryview) -> None:
        reader.read_into(block.offset, view)
        _write(descriptor, view, block.offset)

    for block in blocks:
        async with arena.slot() as slot:
            await _in_thread(executor, copy, block, slot[: block.length])
        progress.add(block.length)


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    written = 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)


async def _in_thread(
    executor: ThreadPoolExecutor, work: Callable[[*_Arguments], None], *arguments: *_Arguments
) -> None:
    """Do `work` in a thread; who is cancelled meanwhile waits until the thread no longer uses what it was given."""
    working = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise
