"""How fast the NBD reader is, each figure as a ratio to a peer measured in the same run. JSON on standard output.

    python -m bench.nbd_read [copy] [tls] [connections] [plan]

copy: a whole disk against nbdcopy. tls: the same over TLS against plain. connections: 8 against 1 where the server
answers one request at a time after 5 ms. plan: dirty extents with merged gaps, against exact reads and against reads
of whole 2 MiB blocks, by latency, share of dirty bytes, and where they lie (`ours / better of the two`: at most 1.1).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import uvloop

from protocol.arena import Arena
from protocol.extent import Extent, align, merge
from protocol.nbd import Block, Budget, Endpoint, open_reader
from tests.nbd_fixtures import KiB, MiB, nbdkit, plain, secured, self_signed

ROUNDS = 3
XAPI_LIKE = ("--filter=noparallel", "--filter=delay")


async def read_seconds(
    endpoint: Endpoint,
    folder: Path,
    extents: Sequence[Extent] | None = None,
    connections: int = 4,
    merging: bool = True,
) -> tuple[float, int]:
    """Seconds and bytes of one read, the first connection being open already."""

    async def locate() -> Sequence[Endpoint]:
        return [endpoint]

    async def drop(block: Block) -> None:
        pass

    arena = Arena(2 * connections)
    async with open_reader(locate, connections=connections, budget=Budget(16, folder)) as reader:
        start = time.perf_counter()
        stats = await reader.read(extents or [Extent(0, reader.size)], arena, drop, merge_gaps=merging)
        return time.perf_counter() - start, stats.bytes_read


def nbdcopy_seconds(uri: str) -> float:
    start = time.perf_counter()
    subprocess.run(["nbdcopy", "--connections=4", "--request-size=2097152", uri, "null:"], check=True)
    return time.perf_counter() - start


async def copy(folder: Path, image: Path) -> dict[str, object]:
    """Ours and nbdcopy by turns, so that both meet the same machine."""
    size = image.stat().st_size
    ours, theirs = [], []
    with nbdkit("file", str(image)) as port:
        for _ in range(ROUNDS):
            theirs.append(nbdcopy_seconds(f"nbd://127.0.0.1:{port}"))
            ours.append((await read_seconds(plain(port, export=""), folder))[0])
    return {
        "ours MB/s": round(size / min(ours) / 1e6),
        "nbdcopy MB/s": round(size / min(theirs) / 1e6),
        "ratio": round(min(theirs) / min(ours), 2),
    }


async def tls(folder: Path, image: Path) -> dict[str, object]:
    size = image.stat().st_size
    pki = folder / "pki"
    pem = self_signed(pki, "localhost")
    figures: dict[str, object] = {}
    with (
        nbdkit("file", str(image)) as open_port,
        nbdkit("--tls=require", f"--tls-certificates={pki}", "file", str(image)) as tls_port,
    ):
        for connections in (1, 4):
            clear, pinned, theirs = [], [], []
            for _ in range(ROUNDS):
                clear.append((await read_seconds(plain(open_port, export=""), folder, connections=connections))[0])
                pinned.append((await read_seconds(secured(tls_port, pem), folder, connections=connections))[0])
                theirs.append(nbdcopy_seconds(f"nbds://localhost:{tls_port}?tls-certificates={pki}"))
            figures[f"{connections} connections"] = {
                "plain MB/s": round(size / min(clear) / 1e6),
                "TLS MB/s": round(size / min(pinned) / 1e6),
                "nbdcopy TLS MB/s": round(size / min(theirs) / 1e6),
                "TLS / plain": round(min(clear) / min(pinned), 2),
                "TLS / nbdcopy TLS": round(min(theirs) / min(pinned), 2),
            }
    return figures


async def connections(folder: Path, image: Path) -> dict[str, object]:
    seconds = {}
    with nbdkit(*XAPI_LIKE, "file", str(image), "rdelay=5ms", "serialize=requests") as port:
        for count in (1, 8):
            seconds[count] = (await read_seconds(plain(port, export=""), folder, connections=count))[0]
    return {"8 / 1": round(seconds[1] / seconds[8], 2), "1: MB/s": round(image.stat().st_size / seconds[1] / 1e6)}


def dirty_extents(size: int, share: float, clustered: bool) -> list[Extent]:
    """64 KiB granules, either anywhere, or mostly near each other with gaps between them."""
    random = Random(1)
    granules = size // (64 * KiB)
    wanted = max(1, int(granules * share))
    chosen: set[int] = set()
    while len(chosen) < wanted:
        start = random.randrange(granules)
        spread = range(start, min(start + 64, granules)) if clustered else (start,)
        chosen.update(granule for granule in spread if not clustered or random.random() < 0.4)
    return merge(Extent(granule * 64 * KiB, 64 * KiB) for granule in chosen)


async def plan(folder: Path, image: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    size = 1024 * MiB
    for delay in (0, 2, 10, 20):
        with nbdkit(*XAPI_LIKE, "pattern", str(size), f"rdelay={delay}ms", "serialize=requests") as port:
            for share in (0.001, 0.01, 0.1):
                for clustered in (False, True):
                    extents = dirty_extents(size, share, clustered)
                    blocks = align(extents, 2 * MiB, size)
                    best: dict[str, tuple[float, int]] = {}
                    for _ in range(ROUNDS if share < 0.1 or delay < 10 else 1):
                        for name, asked, merging in (
                            ("ours", extents, True),
                            ("exact", extents, False),
                            ("2 MiB", blocks, False),
                        ):
                            figure = await read_seconds(plain(port), folder, asked, merging=merging)
                            best[name] = min(best.get(name, figure), figure)
                    rows.append(
                        {
                            "delay ms": delay,
                            "dirty": share,
                            "clustered": clustered,
                            **{f"{name} s": round(seconds, 4) for name, (seconds, _) in best.items()},
                            "ours / better": round(best["ours"][0] / min(best["exact"][0], best["2 MiB"][0]), 2),
                            "bytes / dirty": round(best["ours"][1] / best["exact"][1], 2),
                        }
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


async def main() -> None:
    chosen = [part for part in (copy, tls, connections, plan) if part.__name__ in sys.argv[1:] or len(sys.argv) == 1]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        image = folder / "disk.img"
        with image.open("wb") as out:
            for _ in range(512):
                out.write(os.urandom(MiB))
        print(json.dumps({part.__name__: await part(folder, image) for part in chosen}, indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    uvloop.run(main())
