"""The index of a large store: memory, time to open, lookups per second. Entries are made up, packs are not there.

.venv/bin/python bench/store_index.py [--records 16000000] [--encrypted]
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mover.store import merge, segment
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.index import IndexView, Loaded
from mover.store.names import DATA, PackName, SegmentName
from mover.store.places import mapping_for
from mover.store.segment import ROW, PackEntry

IDENTITY = Identity.of(bytes(32), encrypted="--encrypted" in sys.argv)
BATCH = 64


def make(where: str, records: int) -> None:
    backend = DirectoryBackend(where)
    backend.make_root()
    rng = np.random.default_rng(1)
    loaded = []
    for number in range(8):
        keys = rng.integers(0, 2**64, (records // 8, 4), np.uint64)
        rows = np.zeros(len(keys), ROW)
        rows["rest"] = keys[:, 1:]
        name = SegmentName(0, b"w" * 16, number)
        packs = [PackEntry(PackName(b"w" * 16, number, DATA), 1)]
        upload = IDENTITY.cipher.sealing(name.key, backend.create(name.key))
        upload.write(segment.encode(IDENTITY, keys, rows, packs))
        upload.commit()
        data = mapping_for(backend, "bench", IDENTITY.cipher).map(name.key)
        loaded.append(Loaded(name, segment.parse(IDENTITY, data), data, None))
    print(f"peak {peak()} MiB to make the segments", end="; ")
    del keys, rows
    started = time.perf_counter()
    name = merge.merge(backend, IDENTITY, loaded, b"m" * 16, 0)
    assert name is not None
    print(f"merged {records / 1e6:.0f} M records in {time.perf_counter() - started:.1f} s, peak {peak()} MiB")
    Path(where, "name").write_text(name.key)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def look_up(where: str) -> None:
    base = peak()
    backend = DirectoryBackend(where)
    name = Path(where, "name").read_text()
    mapping = mapping_for(backend, "bench", IDENTITY.cipher)
    if "--encrypted" in sys.argv:
        started = time.perf_counter()
        mapping.map(name)
        print(f"the first time a copy is decrypted in {time.perf_counter() - started:.1f} s", end="; ")
    started = time.perf_counter()
    data = mapping.map(name)
    found = segment.parse(IDENTITY, data)
    opened = time.perf_counter() - started
    size = os.stat(Path(where, name)).st_size
    print(f"{len(found) / 1e6:.0f} M records, {size / len(found):.1f} bytes each, open in {opened * 1000:.1f} ms")
    view = IndexView((Loaded(SegmentName(1, b"m" * 16, 0), found, data, None),))
    rng = np.random.default_rng(2)
    for what, hits in (("all known", True), ("none known", False)):
        count = 400_000
        picked = rng.integers(0, len(found), count)
        keys = []
        for at in range(0, count if hits else 0, 128):
            keys.append(found.ids(picked[at : at + 128]).tobytes())
            data.obj.madvise(mmap.MADV_DONTNEED)
        ids = b"".join(keys) if hits else rng.bytes(32 * count)
        single = [ids[at : at + 32] for at in range(0, len(ids), 32)]
        batches = [single[at : at + BATCH] for at in range(0, count, BATCH)]
        started = time.perf_counter()
        known = sum(map(sum, map(view.contains, batches)))
        seconds = time.perf_counter() - started
        print(f"{what}: {count / seconds / 1000:.0f} k lookups/s in batches of {BATCH}, {known} found", end="; ")
        print(f"peak {peak()} MiB, {base} before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=16_000_000)
    parser.add_argument("--encrypted", action="store_true", help="the index of an encrypted store")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, where = arguments.step
        make(where, arguments.records) if step == "make" else look_up(where)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for step in ("make", "look up"):
            command = [
                sys.executable,
                __file__,
                "--records",
                str(arguments.records),
                "--step",
                step,
                f"{scratch}/store",
                *(["--encrypted"] if arguments.encrypted else []),
            ]
            subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": f"{scratch}/cache"})


if __name__ == "__main__":
    main()
