"""Reading back out of a store."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.operations.content import by_position, differs
from bench.operations.place import SLOTS, Facts
from mover.restore.disk_stream import import_disk
from mover.restore.files import restore_to_files
from mover.restore.progress import RestoreProgress
from mover.restore.xva import Content, xva_stream
from mover.store import Store
from protocol.arena import Arena
from protocol.secret import Secret
from protocol.xva.ova import Ova


async def restore_files(store: str, directory: str) -> Facts:
    """The newest point to raw files."""
    started = time.perf_counter()
    opened = Store.open(store)
    point = opened.point("latest")
    files = await restore_to_files(opened, point, Path(directory), emit=lambda event: None)
    return {"seconds": time.perf_counter() - started, "files": [str(file) for file in files]}


async def restore_stream(store: str, form: str, target: str | None = None) -> Facts:
    """The newest point as a stream (vhd or xva) to nowhere, or to the file `target`."""
    started = time.perf_counter()
    opened = Store.open(store)
    point = opened.point("latest")
    sink = _StreamSink(target)
    with ThreadPoolExecutor(os.cpu_count() or 2) as executor:
        disk = point.record.disks[0]
        if form == "xva":
            reader = opened.disk(disk.root, disk.size)
            content = {"Ref:1": Content(reader, list(reader.extents()))}
            progress = {"Ref:1": RestoreProgress("vm", disk, disk.size, lambda event: None)}
            length, body = xva_stream(Ova({}, []), content, progress, Arena(SLOTS), executor)
            await sink.import_vdi("", format="xva", length=length, body=body)
        else:
            await import_disk(opened, point, disk, sink, "", Arena(SLOTS), executor, lambda event: None)
    failures = [] if sink.written == sink.length else [f"{sink.written} bytes instead of the {sink.length} announced"]
    return {"seconds": time.perf_counter() - started, "written": sink.written, "failures": failures}


async def compare(store: str, point: str, images: Sequence[str], passphrase: str | None = None) -> Facts:
    """Read every disk of a point back and compare it with a file. Holes of both are not looked at."""
    opened = Store.open(store, passphrase=Secret(passphrase) if passphrase else None)
    found = opened.point(point)
    problems: list[str] = []
    for disk, image in zip(by_position(found), images, strict=True):
        if problem := await differs(opened, disk, Path(image)):
            problems.append(problem)
    return {"seconds": 0.0, "failures": problems}


async def read_extents(store: str, extents: Sequence[Sequence[int]], image: str) -> Facts:
    """Some parts of the newest point's disk, one after the other, each compared with `image`, which takes no part.

    `read` is what that took from files, index and tree included, in bytes.
    """
    before = _bytes_read()
    started = time.perf_counter()
    opened = Store.open(store)
    disk = opened.point("latest").record.disks[0]
    reader = opened.disk(disk.root, disk.size)
    seconds, crossed = time.perf_counter() - started, _bytes_read() - before
    failures: list[str] = []
    with open(image, "rb", buffering=0) as expected:
        for offset, length in extents:
            piece = bytearray(length)
            before, started = _bytes_read(), time.perf_counter()
            reader.read_into(offset, memoryview(piece))
            seconds += time.perf_counter() - started
            crossed += _bytes_read() - before
            if os.pread(expected.fileno(), length, offset) != piece:
                failures.append(f"the block at byte {offset} differs from {Path(image).name}")
    return {"seconds": seconds, "read": crossed, "failures": failures[:3]}


def _bytes_read() -> int:
    """By system calls, from the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


class _StreamSink:
    """Takes what would go to a pool."""

    def __init__(self, target: str | None) -> None:
        self._target = target
        self.written = 0
        self.length = 0

    async def import_vdi(
        self, vdi: str, *, format: str, length: int, body: AsyncGenerator[bytes | memoryview, None]
    ) -> None:
        """As `Transfers.import_vdi`."""
        self.length = length
        with open(self._target or os.devnull, "wb", buffering=0) as file:
            async for piece in body:
                self.written += len(piece)
                if self._target:
                    file.write(piece)
