"""What tests of the store share: a small store, a disk made of chunks with known content, backup and restore."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mover.store import PointDisk, PointRecord, Store, Writer
from mover.store.backend import Backend
from mover.store.condemned import encode_condemned
from mover.store.config import Config
from mover.store.lease import Lease
from mover.store.lost import write_lost
from mover.store.names import DATA, PackName, condemned_key
from mover.store.partial import PartialDisk, PartialRun, PartialVm
from mover.store.tree import PlacedPage

CHUNK = 65536


def noise(seed: object, length: int = CHUNK) -> bytes:
    """Bytes that do not compress, always the same for one seed."""
    return random.Random(repr(seed)).randbytes(length)


def text(seed: object, length: int = CHUNK) -> bytes:
    """Bytes that compress to almost nothing, different for each seed."""
    word = hashlib.sha256(repr(seed).encode()).digest()
    return (word * (length // 32 + 1))[:length]


def small_packs(store: Store, target: int = 1 << 20, backend: Backend | None = None) -> Store:
    """The same store, whose packs are closed early."""
    config: Config = replace(store.config, pack_target=target)
    return Store(store._backend if backend is None else backend, config)


def write_disk(
    writer: Writer,
    data: bytes,
    changed: Iterable[int] | None = None,
    *,
    base: bytes | None = None,
    base_size: int = 0,
    slot: int = 32,
) -> bytes:
    """Store a disk, or of its chunks only those `changed`, and return its root."""
    tree = writer.tree(len(data), base=base, base_size=base_size)
    if changed is None:
        for start in range(0, len(data), slot * CHUNK):
            tree.put(start // CHUNK, writer.seal(memoryview(data)[start : start + slot * CHUNK]).ids)
            tree.advance(start // CHUNK)
    else:
        for chunk in changed:
            tree.put(chunk, writer.seal(memoryview(data)[chunk * CHUNK : (chunk + 1) * CHUNK]).ids)
    return tree.finish()


def point_of(root: bytes, size: int, created: float = 0.0, vm: str = "vm", metadata: bytes = b"") -> PointRecord:
    """A restore point with one disk."""
    disk = PointDisk(position="0", name="disk", vdi_uuid="vdi", size=size, root=root)
    return PointRecord(vm_uuid=f"{vm}-uuid", vm_name=vm, created=created, metadata=metadata, disks=[disk])


def back_up(store: Store, data: bytes, created: float = 0.0, vm: str = "vm") -> str:
    """A full backup of one disk in a run of its own; the point's id."""
    with store.writer() as writer:
        return writer.commit(point_of(write_disk(writer, data), len(data), created, vm))


def read_disk(store: Store, root: bytes, size: int) -> bytes:
    """The whole disk."""
    out = bytearray(b"\xaa" * size)
    store.disk(root, size).read_into(0, memoryview(out))
    return bytes(out)


def restore(store: Store, point: str) -> bytes:
    """The first disk of a point."""
    disk = store.point(point).record.disks[0]
    return read_disk(store, disk.root, disk.size)


def add_notes(store: Store) -> None:
    """One object of each kind that a store has only while somebody works on it, or after he was interrupted.

    The oldest point is forgotten for that.
    """
    backend, identity = store._backend, store._identity
    with store.writer() as writer:
        disk = PartialDisk(
            vdi_uuid="v", snapshot_uuid="s", size=CHUNK, done=CHUNK, pages=[PlacedPage(0, 0, bytes(range(32)))]
        )
        vm = PartialVm(vm_uuid="u", snapshot_uuid="s", created=1.0, disks=[disk])
        writer.note_progress(PartialRun(job="j", run="r", vms=[vm]))
    store.forget(store.points()[:1])
    write_lost(backend, identity, bytes(16), frozenset({bytes(range(32))}))
    condemned = encode_condemned(identity, [PackName(bytes(16), 7, DATA)])
    backend.put(condemned_key(bytes(16)), identity.cipher.seal(condemned_key(bytes(16)), condemned))
    Lease(backend, bytes(16))


def files_of(root: Path) -> list[Path]:
    """Every object of a store in a directory."""
    return sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != "tmp")
