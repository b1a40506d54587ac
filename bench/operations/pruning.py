"""A store of many chunks, half of whose points are forgotten: what pruning it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bench.operations.place import Facts
from mover.store import PointDisk, PointRecord, Store, Writer

CHUNK = 64 << 10
VMS = 4
_BATCH = 64


async def make_generations(store: str, count: int) -> Facts:
    """About `count` chunks: for each VM a disk, and the same once more with nine of sixteen chunks changed."""
    started = time.perf_counter()
    opened = Store.create(store, chunk_size=CHUNK)
    chunks = count * 4 // 25
    for vm in range(VMS):
        with opened.writer() as writer:
            tree = writer.tree(chunks * CHUNK)
            for batch in _batches(np.arange(chunks)):
                tree.put(int(batch[0]), writer.seal(_content(vm, 0, batch)).ids)
            first = tree.finish()
            _commit(writer, vm, 0, first, chunks)
        with opened.writer() as writer:
            tree = writer.tree(chunks * CHUNK, base=first, base_size=chunks * CHUNK)
            for batch in _batches(np.flatnonzero(_changed(np.arange(chunks)))):
                ids = writer.seal(_content(vm, 1, batch)).ids
                for at, chunk in enumerate(batch.tolist()):
                    tree.put(chunk, ids[at * 32 : at * 32 + 32])
            _commit(writer, vm, 1, tree.finish(), chunks)
    return {"seconds": time.perf_counter() - started}


async def forget_and_prune(store: str) -> Facts:
    """Forget the older point of each VM and give back what only they needed."""
    started = time.perf_counter()
    opened = Store.open(store)
    forgotten = opened.forget([point for point in opened.points() if point.record.created < 1])
    report = opened.prune()
    return {
        "seconds": time.perf_counter() - started,
        "forgotten": len(forgotten),
        "records": report.records,
        "deleted": report.deleted,
        "repacked": report.repacked,
        "freed": report.freed,
        "copied": report.copied,
    }


async def check_generations(store: str) -> Facts:
    """Compare what is left with what was written."""
    opened = Store.open(store)
    failures: list[str] = []
    points = opened.points()
    for point in points:
        vm, generation = int(point.record.vm_name), int(point.record.created)
        disk = point.record.disks[0]
        reader = opened.disk(disk.root, disk.size)
        for batch in _batches(np.arange(disk.size // CHUNK)):
            piece = bytearray(len(batch) * CHUNK)
            reader.read_into(int(batch[0]) * CHUNK, memoryview(piece))
            if piece != _content(vm, generation, batch):
                failures.append(f"VM {vm} differs after chunk {batch[0]}")
    if len(points) != VMS:
        failures.append(f"{len(points)} points are left of {VMS}")
    return {"seconds": 0.0, "failures": failures[:3]}


def _commit(writer: Writer, vm: int, generation: int, root: bytes, chunks: int) -> None:
    disk = PointDisk(position="0", name="disk", vdi_uuid="", size=chunks * CHUNK, root=root)
    writer.commit(
        PointRecord(vm_uuid=f"vm{vm}", vm_name=str(vm), created=float(generation), metadata=b"", disks=[disk])
    )


def _batches(chunks: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(chunks), _BATCH):
        yield chunks[start : start + _BATCH]


def _changed(chunks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return chunks * 7 % 16 < 9


def _content(vm: int, generation: int, chunks: npt.NDArray[np.int64]) -> memoryview:
    """No two chunks are alike, and all are small when compressed."""
    words = np.zeros((len(chunks), CHUNK // 8), np.int64)
    words[:, 0] = chunks + 1
    words[:, 1] = vm
    words[:, 2] = _changed(chunks) * generation
    return memoryview(words.tobytes())
