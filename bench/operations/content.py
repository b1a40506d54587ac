"""Comparing what is stored with files."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path

import numpy as np

from bench.operations.place import MiB
from mover.pipeline.outflow import blocks_in_order
from mover.simulator.sparse import data_of
from mover.store import Point, PointDisk, Store
from protocol.arena import Arena
from protocol.extent import align, merge, split


async def differs(store: Store, disk: PointDisk, image: Path) -> str | None:
    size = image.stat().st_size
    if disk.size != size:
        return f"the stored disk has {disk.size} bytes, the image {size}"
    reader = store.disk(disk.root, size)
    with mapped(image) as expected, image.open("rb") as file, ThreadPoolExecutor(2) as executor:
        held = align(merge([*reader.extents(), *data_of(file.fileno(), size)]), store.chunk_size, size)
        async with aclosing(blocks_in_order(reader, split(held, 2 * MiB), Arena(8), executor)) as blocks:
            async for block, view in blocks:
                if not same(view, expected[block.offset : block.end]):
                    return f"the stored disk differs from {image.name} in the block at byte {block.offset}"
    return None


def same(left: memoryview, right: memoryview) -> bool:
    return np.array_equal(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8))


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        yield memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def by_position(point: Point) -> list[PointDisk]:
    return sorted(point.record.disks, key=lambda disk: int(disk.position))
