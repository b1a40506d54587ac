"""Disks of a restore point into files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from mover.backup.metadata import decode, encode, ova_xml_of
from mover.errors import NotFoundError, StoreDamagedError, TargetError, UsageError
from mover.events import Emit, Note
from mover.restore.choice import choose_disks
from mover.restore.fill import Holds, fill, is_filled
from mover.restore.layout import DiskContent, Layout, raw_layout, vhd_layout
from mover.restore.ova import describe
from mover.restore.progress import RestoreProgress
from mover.restore.xva import Content
from mover.restore.xva_layout import xva_layout
from mover.store import MEMORY, Point, PointDisk, Store
from mover.units import format_size
from protocol.arena import Arena
from protocol.extent import total
from protocol.tasks import in_thread
from protocol.vhd import MAX_SIZE

# Threads: where the store is far away more, each with what it reads in one go, within the memory there is.
_THREADS = 4
_MOST_THREADS = 5
_SLOT = 2 << 20
_AGAIN = "the same command goes on where this one ended"

Format = Literal["raw", "vhd", "xva"]
LayoutOf = Callable[[DiskContent, int], Layout]
# Formats with a file for each disk: another one is a layout more. An XVA holds them all.
_LAYOUTS: dict[Format, LayoutOf] = {"raw": raw_layout, "vhd": vhd_layout}


async def restore_to_files(
    store: Store, point: Point, directory: Path, *, disks: Sequence[str] = (), form: Format = "raw", emit: Emit
) -> list[Path]:
    """Write disks of `point` as sparse raw files, dynamic VHDs or one XVA into `directory`, with the VM's metadata.

    `disks` are positions or names (empty: all). A file appears under its final name only when it is whole. What is
    there already counts: a file that is right is left as it is, one that an interrupted restore has left unfinished
    (`.partial`) is gone on with, any other is replaced once its successor is whole. Returns the disks' files, in order
    of position. Raises `NotFoundError`, `TargetError` if a file cannot be written, `UsageError` if a disk is too large
    for the format; `StoreDamagedError` once everything else is restored.
    """
    chosen = choose_disks(point, disks)
    if form == "vhd":
        _refuse_too_large(point, chosen)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"cannot make {directory}: {error.strerror}") from error
    name = _file_name(point.record.vm_name)
    files: list[Path] = []
    damaged: list[StoreDamagedError] = []
    try:
        _write_metadata(store, point, directory, name)
    except StoreDamagedError as error:
        damaged.append(StoreDamagedError(f"{point.record.vm_name}, its configuration: {error}", error.hint))
    threads = max(_THREADS, min(store.readers, _MOST_THREADS))
    # Two slots for each thread: the next part is ready when it is done with one. Not worth the memory if it waits.
    slots = threads if store.readers > 1 else 2 * threads
    with ThreadPoolExecutor(threads, "restore") as executor:
        # Parts of whole chunks can be compared with their ids.
        work = _Work(store, point, Arena(slots, max(_SLOT, store.chunk_size)), executor, emit)
        if form == "xva":
            files.append(directory / f"{name}.xva")
            await _restore_vm(work, chosen, files[0])
            return files
        for disk in chosen:
            path = directory / f"{name}-{_file_name(disk.position)}.{form}"
            try:
                await _restore_disk(work, disk, path, _LAYOUTS[form])
            except StoreDamagedError as error:
                damaged.append(StoreDamagedError(f"{_which(point, disk)}: {error}", error.hint))
            else:
                files.append(path)
    if damaged:
        raise _all_of(damaged, files)
    return files


def _all_of(damaged: Sequence[StoreDamagedError], files: Sequence[Path]) -> StoreDamagedError:
    """The first error, with the others and what is good all the same as notes."""
    first, *others = damaged
    for other in others:
        first.add_note(f"also: {other}")
    for file in files:
        first.add_note(f"whole: {file}")
    return first


def _which(point: Point, disk: PointDisk) -> str:
    return f"{point.record.vm_name}, disk {disk.position} ({disk.name})"


def _refuse_too_large(point: Point, disks: Sequence[PointDisk]) -> None:
    for disk in disks:
        if not 0 < disk.size <= MAX_SIZE:
            raise UsageError(
                f"{_which(point, disk)}: a VHD holds at most {format_size(MAX_SIZE)}, not {format_size(disk.size)}",
                "--format raw has no limit",
            )


def _write_metadata(store: Store, point: Point, directory: Path, name: str) -> None:
    """The records of the VM, and the pool's own form of them, as far as the point has them."""
    if not point.record.metadata:
        return
    metadata = decode(store.get_blob(point.record.metadata))
    _write_private(directory / f"{name}.json", encode(metadata))
    ova_xml = ova_xml_of(metadata)
    if ova_xml is not None:
        _write_private(directory / f"{name}.ova.xml", ova_xml.encode())


def _write_private(path: Path, data: bytes) -> None:
    """Firmware variables and TPM contents are in it: nobody else may read the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def _file_name(text: str) -> str:
    """`text` as one harmless component of a path."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".") or "vm"


@dataclass(frozen=True)
class _Work:
    """What the disks of one restore share."""

    store: Store
    point: Point
    arena: Arena
    executor: ThreadPoolExecutor
    emit: Emit


async def _restore_disk(work: _Work, disk: PointDisk, path: Path, layout_of: LayoutOf) -> None:
    """Leave alone a file that is right already; otherwise go on with the unfinished one, then give it its name."""
    reader = work.store.disk(disk.root, disk.size)
    extents = await in_thread(work.executor, lambda: list(reader.extents()))
    layout = layout_of(DiskContent(disk.size, extents, _unique_id(work.point, disk)), work.arena.slot_size)
    progress = RestoreProgress(work.point.record.vm_uuid, disk, total(extents), work.emit)
    await _restore_file(work, path, layout, reader, progress)


async def _restore_vm(work: _Work, disks: Sequence[PointDisk], path: Path) -> None:
    """The disks in one XVA, with everything else that a pool needs to make the VM of it."""
    point = work.point
    if not point.record.metadata:
        raise NotFoundError(f"the point {point.id} has no metadata to make an XVA of", "--format raw needs none")
    saved = decode(work.store.get_blob(point.record.metadata))
    if any(disk.position == MEMORY for disk in disks):
        message = "an XVA of a VM that is off has no memory; --format raw has it"
        work.emit(Note(level="warning", vm=point.record.vm_uuid, message=message))
        disks = [disk for disk in disks if disk.position != MEMORY]
    ova, ids = describe(saved, disks, point.record.vm_name)
    contents = {ids[disk.position]: await in_thread(work.executor, _content, work.store, disk) for disk in disks}
    layout, content, data = await in_thread(work.executor, xva_layout, ova, contents)
    size = sum(disk.size for disk in disks)
    whole = PointDisk(position="xva", name=path.name, vdi_uuid="", size=size, root=b"")
    progress = RestoreProgress(point.record.vm_uuid, whole, data, work.emit)
    await _restore_file(work, path, layout, content, progress)


def _content(store: Store, disk: PointDisk) -> Content:
    reader = store.disk(disk.root, disk.size)
    return Content(reader, list(reader.extents()))


async def _restore_file(work: _Work, path: Path, layout: Layout, reader: Holds, progress: RestoreProgress) -> None:
    unfinished = path.with_name(path.name + ".partial")
    try:
        if await _is_there(work, path, layout, reader, progress):
            unfinished.unlink(missing_ok=True)
        else:
            progress.restart()
            with _only_ours(unfinished) as descriptor:
                await fill(descriptor, layout, reader, work.arena, work.executor, progress)
                unfinished.rename(path)
                await in_thread(work.executor, _sync_folder, path.parent)
    except OSError as error:
        raise TargetError(f"cannot write {unfinished}: {error.strerror}", _AGAIN) from error
    progress.finish()


async def _is_there(work: _Work, path: Path, layout: Layout, reader: Holds, progress: RestoreProgress) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await is_filled(descriptor, layout, reader, work.arena, work.executor, progress)
    finally:
        os.close(descriptor)


@contextmanager
def _only_ours(path: Path) -> Iterator[int]:
    """Open a file for reading and writing, making it if it is not there. Raises `TargetError` if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(path) from error
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise _taken(path)  # and has given it its name in this moment
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(path: Path) -> TargetError:
    return TargetError(f"another restore is writing {path}", "wait for it, or restore to another folder")


def _unique_id(point: Point, disk: PointDisk) -> UUID:
    """The same whenever this disk of this point is restored, and no other disk's. A random UUID by its looks."""
    said = f"{point.id} {disk.position} {disk.root.hex()}".encode()
    return UUID(bytes=hashlib.sha256(said).digest()[:16], version=4)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
