"""A store of many chunks, half of whose points are forgotten: what pruning it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as counting

import numpy as np
import numpy.typing as npt

from bench.operations.place import Facts
from mover.store import PointDisk, PointRecord, Store, Writer, record
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.names import DATA, SegmentName, new_writer_id
from mover.store.pack_writer import PackWriter, Written
from mover.store.publish import PUBLISH_RECORDS, publish_written

CHUNK = 64 << 10
VMS = 4
_BATCH = 64
# The words of a chunk that are not zero.
_WORDS = 3

# Stores chunks of a generation of a VM, by their numbers; their ids, joined.
StoreChunks = Callable[[int, int, "npt.NDArray[np.int64]"], bytes]


async def make_generations(store: str, count: int, small: bool = False) -> Facts:
    """About `count` chunks: for each VM a disk, and the same once more with nine of sixteen chunks changed.

    If they are `small`, 24 bytes are kept of each: no disk can be restored, but a prune treats them like any others.
    """
    started = time.perf_counter()
    opened = Store.create(store, chunk_size=CHUNK)
    chunks = count * 4 // 25
    for vm in range(VMS):
        with opened.writer() as writer:
            tree = writer.tree(chunks * CHUNK)
            with _small(opened) if small else _whole(writer) as put:
                for batch in _batches(np.arange(chunks)):
                    tree.put(int(batch[0]), put(vm, 0, batch))
            first = tree.finish()
            _commit(writer, vm, 0, first, chunks)
        with opened.writer() as writer:
            tree = writer.tree(chunks * CHUNK, base=first, base_size=chunks * CHUNK)
            with _small(opened) if small else _whole(writer) as put:
                for batch in _batches(np.flatnonzero(_changed(np.arange(chunks)))):
                    ids = put(vm, 1, batch)
                    for at, chunk in enumerate(batch.tolist()):
                        tree.put(chunk, ids[at * 32 : at * 32 + 32])
            _commit(writer, vm, 1, tree.finish(), chunks)
    # Who publishes merges what has become many segments.
    with opened.writer() as writer:
        writer.put_blob(b"needed by nobody")
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


@contextmanager
def _whole(writer: Writer) -> Iterator[StoreChunks]:
    """Chunks as a backup stores them."""
    yield lambda vm, generation, batch: writer.seal(_content(vm, generation, batch)).ids


@contextmanager
def _small(opened: Store) -> Iterator[StoreChunks]:
    """Chunks that are cut short."""
    backend, identity = DirectoryBackend(opened.location), Identity.of(opened.config.key, encrypted=False)
    wid, numbers = new_writer_id(), counting()
    waiting: list[Written] = []
    packs = PackWriter(backend, identity, wid, opened.config.pack_target, waiting.append)

    def publish() -> None:
        ids = publish_written(backend, identity, SegmentName(0, wid, next(numbers)), waiting)
        waiting.clear()
        packs.indexed(ids)

    def put(vm: int, generation: int, batch: npt.NDArray[np.int64]) -> bytes:
        whole = _words(vm, generation, batch, _WORDS).tobytes()
        parts = [whole[at : at + _WORDS * 8] for at in range(0, len(whole), _WORDS * 8)]
        sealed = [record.seal(identity.chunk_id(part), record.CHUNK, part, None, identity.cipher) for part in parts]
        packs.append(DATA, sealed, lambda unknown: unknown)
        if len(packs.ids) > 2 * PUBLISH_RECORDS:
            packs.flush()
            publish()
        return b"".join(one.id for one in sealed)

    try:
        yield put
        packs.flush()
        publish()
    finally:
        packs.stop()


async def check_small(store: str) -> Facts:
    """Whether every record that points need is there, and is what its id says."""
    opened = Store.open(store)
    points = opened.points()
    failures = [f"{one.object}: {one.reason}" for one in opened.verify(points, deep=True)]
    if len(points) != VMS:
        failures.append(f"{len(points)} points are left of {VMS}")
    return {"seconds": 0.0, "failures": failures[:3]}


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
    return memoryview(_words(vm, generation, chunks, CHUNK // 8).tobytes())


def _words(vm: int, generation: int, chunks: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    words = np.zeros((len(chunks), length), np.int64)
    words[:, 0] = chunks + 1
    words[:, 1] = vm
    words[:, 2] = _changed(chunks) * generation
    return words
