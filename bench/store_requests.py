"""How many requests a store in a bucket takes, counted by a real server (SeaweedFS, on this machine).

    .venv/bin/python -m bench.store_requests [MIB ...]

For each size: a full backup of a disk whose chunks compress to 0.46, an incremental of 1 % of its chunks at random
places, one of nothing, restores, a check, and a prune of the first point. Two sizes give what is fixed and what grows.
And a large disk of which only the tree is made, and some chunks scattered over it change.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mover.store import PointDisk, PointRecord, Store
from protocol.extent import Extent, split
from tests.store_backends import Weed, serving

CHUNK = 64 << 10
SLOT = 2 << 20
TIB = 1 << 40
SCATTERED_OVER = 256 << 30


def chunk() -> bytes:
    """64 KiB that zstd makes 30 KiB of."""
    return os.urandom(30_000) + bytes(CHUNK - 30_000)


def commit(store: Store, size: int, changed: Sequence[int], created: float, base: PointDisk | None) -> None:
    """Back up a disk in a run of its own: the chunks `changed` are new."""
    with store.writer() as writer, ThreadPoolExecutor(2) as pool:
        tree = writer.tree(size, base=base.root if base else None, base_size=base.size if base else 0)
        runs = [changed[at : at + SLOT // CHUNK] for at in range(0, len(changed), SLOT // CHUNK)]

        def seal(run: Sequence[int]) -> None:
            ids = writer.seal(memoryview(b"".join(chunk() for _ in run))).ids
            for at, number in enumerate(run):
                tree.put(number, ids[32 * at : 32 * at + 32])

        for _ in pool.map(seal, runs):
            pass
        disk = PointDisk(position="0", name="disk", vdi_uuid="vdi", size=size, root=tree.finish())
        writer.commit(PointRecord(vm_uuid="vm", vm_name="vm", created=created, metadata=b"", disks=[disk]))


def restore(store: Store, number: int) -> None:
    """Read all of a point's disk, as a restore to files does."""
    disk = store.points()[number].record.disks[0]
    reader = store.disk(disk.root, disk.size)

    def read(block: Extent) -> None:
        reader.read_into(block.offset, memoryview(bytearray(block.length)))

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(read, split(list(reader.extents()), SLOT)):
            pass


def measure(weed: Weed, size: int) -> dict[str, dict[str, int]]:
    """Requests by what was done, and by their kind."""
    at = weed.backend()
    chunks = size // CHUNK
    scattered = sorted(random.Random(1).sample(range(chunks), chunks // 100))

    def again() -> Store:
        return Store.open(at)

    def base() -> PointDisk:
        return again().points()[-1].record.disks[0]

    def prune() -> None:
        store = again()
        store.forget(store.points()[:2])
        store.prune()

    steps: dict[str, Callable[[], object]] = {
        "make": lambda: Store.create(at),
        "full": lambda: commit(again(), size, range(chunks), 1, None),
        "incremental, 1 %": lambda: commit(again(), size, scattered, 2, base()),
        "incremental, nothing": lambda: commit(again(), size, [], 3, base()),
        "restore the full": lambda: restore(again(), 0),
        "restore the incremental": lambda: restore(again(), -1),
        "verify": lambda: list(again().verify()),
        "prune": prune,
    }
    counted: dict[str, dict[str, int]] = {}
    for name, step in steps.items():
        before = weed.requests()
        step()
        counted[name] = {kind: count - before.get(kind, 0) for kind, count in weed.requests().items()}
    return counted


def measure_scattered(weed: Weed, size: int, changes: Sequence[int]) -> dict[int, dict[str, int]]:
    """Requests of incrementals of a disk of `size` bytes, by how many chunks changed. Its full has no chunks."""
    at = weed.backend()
    store, chunks, at_once = Store.create(at), size // CHUNK, 1 << 13
    with store.writer() as writer:
        tree = writer.tree(size)
        for first in range(0, chunks, at_once):
            tree.put(first, os.urandom(32 * min(at_once, chunks - first)))
            tree.advance(first)
        disk = PointDisk(position="0", name="disk", vdi_uuid="vdi", size=size, root=tree.finish())
        writer.commit(PointRecord(vm_uuid="vm", vm_name="vm", created=0, metadata=b"", disks=[disk]))
    counted = {}
    for count in changes:
        before = weed.requests()
        with Store.open(at).writer() as writer:
            tree = writer.tree(size, base=disk.root, base_size=size)
            for number in sorted(random.Random(count).sample(range(chunks), count)):
                tree.put(number, writer.seal(memoryview(chunk())).ids)
                tree.advance(number)
            root = tree.finish()
            changed = PointDisk(position="0", name="disk", vdi_uuid="vdi", size=size, root=root)
            writer.commit(PointRecord(vm_uuid="vm", vm_name="vm", created=count, metadata=b"", disks=[changed]))
        counted[count] = {kind: number - before.get(kind, 0) for kind, number in weed.requests().items()}
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[256, 1024], metavar="MIB")
    arguments = parser.parse_args()
    sizes = [mib << 20 for mib in arguments.sizes]
    with tempfile.TemporaryDirectory() as cache, serving() as weed:
        os.environ["XDG_CACHE_HOME"] = cache
        found = [measure(weed, size) for size in sizes]
        scattered = measure_scattered(weed, SCATTERED_OVER, (100, 2500))
    kinds = sorted({kind for one in found for counts in one.values() for kind in counts})
    print("| step |", " | ".join(f"{size >> 20} MiB" for size in sizes), "| for each TiB more |")
    print("|---|" + "---|" * (len(sizes) + 1))
    for step in found[0]:
        cells = [", ".join(f"{one[step][kind]} {kind}" for kind in kinds if one[step].get(kind)) for one in found]
        grown = {kind: found[-1][step].get(kind, 0) - found[0][step].get(kind, 0) for kind in kinds}
        slope = ", ".join(
            f"{round(more * TIB / (sizes[-1] - sizes[0])):,} {kind}" for kind, more in grown.items() if more > 0
        )
        print(f"| {step} |", " | ".join(cells), f"| {slope} |")
    for changes, counts in scattered.items():
        line = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"{changes} chunks scattered over {SCATTERED_OVER >> 30} GiB: {line}")


if __name__ == "__main__":
    main()
