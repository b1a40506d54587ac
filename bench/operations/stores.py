"""Stores to measure with, and how large they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.operations.place import Facts
from mover.store import Store, segment
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.index import Loaded
from mover.store.merge import merge as merge_segments
from mover.store.names import DATA, PackName, SegmentName

_PARTS = 8


async def make_index(store: str, count: int) -> Facts:
    """A store with `count` records in its index that nobody has ever written, in eighths merged to one segment."""
    opened = Store.create(store)
    backend = DirectoryBackend(store)
    identity = Identity.of(opened.config.key, encrypted=False)
    rng = np.random.default_rng(count)
    loaded = []
    for number in range(_PARTS):
        pack = PackName(b"made-up-records-", number, DATA)
        backend.put(pack.key, b"?")
        keys = rng.integers(0, 2**64, (count // _PARTS, 4), np.uint64)
        rows = np.zeros(len(keys), segment.ROW)
        rows["rest"] = keys[:, 1:]
        name = SegmentName(0, b"made-up-records-", number)
        backend.put(name.key, b"".join(segment.encode(identity, keys, rows, [segment.PackEntry(pack, 1)])))
        data = backend.map(name.key)
        loaded.append(Loaded(name, segment.parse(identity, data), data, None))
    merged = merge_segments(backend, identity, loaded, b"made-up-records-", _PARTS)
    assert merged is not None
    for part in loaded:
        backend.delete(part.name.key)
    return {"seconds": 0.0}


async def stored_bytes(store: str) -> Facts:
    """What the store takes on disk: all of it, packs of data, and everything else."""
    sizes = {path: path.stat().st_size for path in Path(store).rglob("*") if path.is_file()}
    return {"seconds": 0.0, "all": sum(sizes.values())}
