"""A full over NBD into a new store, beside `zstd -1 -T2` of the same image as a local file.

Needs nbdkit and zstd. The image is a real ext4 file system; nbdkit serves it, so that the server is nobody's excuse.
Rounds alternate between the two; the first one warms the page cache and does not count. Afterwards the stored disk is
read back and compared byte by byte: a fast wrong copy fails.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import uvloop

from mover.pipeline.intake import Intake
from mover.pipeline.outflow import blocks_in_order
from mover.pipeline.pace import Pace
from mover.simulator.guest import make_ext4
from mover.simulator.trees import find_tree
from mover.source.nbd import NbdSource
from mover.store import Store
from protocol.arena import Arena
from protocol.extent import Extent, split
from protocol.nbd import Budget, Endpoint, open_reader
from protocol.secret import Secret

MiB = 1 << 20
BAR = 1.0


@contextmanager
def served(image: Path) -> Iterator[int]:
    """nbdkit serving the image; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(image)])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield port
    finally:
        server.terminate()
        server.wait()


async def back_up(port: int, store: Store) -> tuple[bytes, int]:
    """One full; returns root and size."""

    async def locate() -> list[Endpoint]:
        return [Endpoint("127.0.0.1", port, Secret("x"), None, "bench")]

    with store.writer() as writer, ThreadPoolExecutor(2) as executor:
        async with open_reader(locate, connections=4, budget=Budget()) as reader:
            whole = [Extent(0, reader.size)]
            tree = writer.tree(reader.size)
            intake = Intake(writer, tree, whole, reader.size, store.chunk_size, executor, lambda counts: None)
            await NbdSource(reader, Pace(0)).deliver(whole, Arena(24), intake.take)
            size = reader.size
        root = intake.finish()
        writer.flush()
    return root, size


async def compare(store: Store, root: bytes, size: int, image: Path) -> None:
    """Read everything back and compare it with the image. Raises `SystemExit`."""
    with image.open("rb") as file, ThreadPoolExecutor(2) as executor:
        blocks = split([Extent(0, size)], 2 * MiB)
        async for block, view in blocks_in_order(store.disk(root, size), blocks, Arena(8), executor):
            if file.read(block.length) != view:
                sys.exit(f"the stored disk differs from the image at byte {block.offset}")


def main(arguments: list[str]) -> int:
    """Print seconds, spread and ratio; 1 if the ratio is below its bar."""
    parser = argparse.ArgumentParser(prog="bench full", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of files in the image")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="mover-bench-"))
    try:
        image = folder / "image"
        tree = find_tree(options.mib * MiB)
        make_ext4(tree.path, image, max(2 * options.mib * MiB, tree.size * 5 // 4), uuids.UUID(int=1))
        ours: list[float] = []
        theirs: list[float] = []
        with served(image) as port:
            for number in range(options.rounds + 1):
                shutil.rmtree(folder / "store", ignore_errors=True)
                store = Store.create(folder / "store")
                started = time.monotonic()
                root, size = uvloop.run(back_up(port, store))
                ours.append(time.monotonic() - started)
                started = time.monotonic()
                subprocess.run(["zstd", "-q", "-1", "-T2", "-f", image, "-o", folder / "image.zst"], check=True)
                theirs.append(time.monotonic() - started)
                if number == options.rounds:
                    uvloop.run(compare(store, root, size, image))
        ratio = statistics.median(theirs[1:]) / statistics.median(ours[1:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for name, seconds in (("ours", ours[1:]), ("zstd -1 -T2", theirs[1:])):
            print(f"{name:12} median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s")
        print(f"ratio {ratio:.2f} (bar {BAR}), {size / MiB:.0f} MiB, peak RSS {peak:.0f} MiB, content identical")
        return 0 if ratio >= BAR else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
