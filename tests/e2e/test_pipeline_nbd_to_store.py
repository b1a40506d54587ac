"""The whole byte path on real sockets: nbdkit, libnbd, the store, and back into a file."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mover.pipeline.intake import Counts, Intake
from mover.pipeline.outflow import blocks_in_order
from mover.pipeline.pace import Pace
from mover.source.nbd import NbdSource
from mover.store import Store
from protocol.arena import Arena
from protocol.extent import Extent, align, split
from protocol.nbd import Budget, Endpoint, open_reader
from protocol.secret import Secret

pytestmark = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs nbdkit")

MiB = 1 << 20
CHUNK = 64 << 10


@contextmanager
def served(path: Path, tmp_path: Path, *filters: str) -> Iterator[int]:
    """nbdkit serving `path` on the port that is yielded."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pid = tmp_path / "nbdkit.pid"
    plugin = ["file", f"file={path}"]
    process = subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "-P", pid, *filters, *plugin])
    try:
        for _ in range(2000):
            if pid.exists():
                break
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        yield port
    finally:
        process.terminate()
        process.wait()


def make_disk(path: Path, size: int, seed: int) -> bytes:
    """A disk with holes, zeros, repetition and noise."""
    rng = random.Random(seed)
    content = bytearray(size)
    for offset in range(0, size, CHUNK):
        length = min(CHUNK, size - offset)
        match rng.randrange(4):
            case 0:
                content[offset : offset + length] = rng.randbytes(length)
            case 1:
                content[offset : offset + length] = (b"mover %d " % rng.randrange(3) * length)[:length]
            case _:
                pass
    path.write_bytes(content)
    return bytes(content)


async def back_up(store: Store, port: int, size: int, extents: list[Extent], base: bytes | None, base_size: int):
    async def locate() -> list[Endpoint]:
        return [Endpoint("127.0.0.1", port, Secret(""), None, "host")]

    reports: list[Counts] = []
    arena = Arena(8)
    with store.writer() as writer, ThreadPoolExecutor(2) as executor:
        tree = writer.tree(size, base=base, base_size=base_size)
        intake = Intake(writer, tree, extents, size, store.chunk_size, executor, reports.append)
        async with open_reader(locate, connections=3, budget=Budget()) as reader:
            read = await NbdSource(reader, Pace(0), merge_gaps=False).deliver(extents, arena, intake.take)
        root = intake.finish()
        writer.flush()
    return root, read, intake.counts


async def content_of(store: Store, root: bytes, size: int) -> bytes:
    content = bytearray(size)
    reader = store.disk(root, size)
    with ThreadPoolExecutor(2) as executor:
        async for block, view in blocks_in_order(reader, split(reader.extents(), 2 * MiB), Arena(4), executor):
            content[block.offset : block.end] = view
    return bytes(content)


@pytest.mark.parametrize("size", [24 * MiB, 24 * MiB + 512, 512], ids=["aligned", "a sector more", "one sector"])
async def test_full_then_incremental(tmp_path: Path, size: int):
    image = tmp_path / "disk"
    before = make_disk(image, size, seed=1)
    store = Store.create(tmp_path / "store")
    with served(image, tmp_path) as port:
        root, read, counts = await back_up(store, port, size, [Extent(0, size)], None, 0)
        assert read == counts.done == size
        assert counts.zero + counts.known + counts.new == size
        assert await content_of(store, root, size) == before

        after = bytearray(before)
        changed = [Extent(offset, CHUNK) for offset in range(0, size, 7 * CHUNK)]
        for number, extent in enumerate(changed):
            length = min(CHUNK, size - extent.offset)
            after[extent.offset : extent.offset + length] = bytes(length) if number % 2 else b"\x07" * length
        image.write_bytes(after)
        extents = align(changed, CHUNK, size)
        new_root, read, counts = await back_up(store, port, size, extents, root, size)
        assert counts.done == sum(extent.length for extent in extents) == read
        assert await content_of(store, new_root, size) == bytes(after)
        assert await content_of(store, root, size) == before


async def test_an_unchanged_disk_has_the_same_root_and_stores_nothing(tmp_path: Path):
    size = 8 * MiB
    image = tmp_path / "disk"
    make_disk(image, size, seed=2)
    store = Store.create(tmp_path / "store")
    with served(image, tmp_path) as port:
        root, _, _ = await back_up(store, port, size, [Extent(0, size)], None, 0)
        again, _, counts = await back_up(store, port, size, [Extent(0, size)], None, 0)
    assert again == root
    assert counts.new == counts.stored == 0
