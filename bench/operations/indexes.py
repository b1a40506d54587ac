"""The index of a large store, whose records nobody has ever written: what opening it and looking ids up takes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from bench.operations.place import Facts
from mover.store import Store, segment
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.index import Index, Loaded, split_ids
from mover.store.keys import Cost
from mover.store.merge import merge as merge_segments
from mover.store.names import DATA, PackName, SegmentName
from mover.store.places import mapping_for
from protocol.secret import Secret

_PARTS = 8
# As a copy or a verification asks, at least; and as a backup does, once for each buffer of chunks.
_BATCH, _FEW = 1024, 32
# Ids picked from the index at a time, before the pages they were on are let go.
_PICKED = 128
# What unlocking takes is no part of what is measured.
_CHEAP = Cost(memory=64, passes=1, lanes=1)


async def make_index(store: str, count: int, passphrase: str | None = None) -> Facts:
    """A store with `count` records in its index, in eighths merged to one segment; encrypted if there is a passphrase.

    Copies of the eighths are made in a cache beside the store, which is removed.
    """
    cache = _use_cache(store)
    opened = Store.create(store, passphrase=Secret(passphrase) if passphrase else None, cost=_CHEAP)
    backend = DirectoryBackend(store)
    identity = Identity.of(opened.config.key, encrypted=opened.config.encrypted)
    mapping = mapping_for(backend, opened.config.store_id, identity.cipher)
    rng = np.random.default_rng(count)
    loaded = []
    for number in range(_PARTS):
        pack = PackName(b"made-up-records-", number, DATA)
        backend.put(pack.key, b"?")
        keys = rng.integers(0, 2**64, (count // _PARTS, 4), np.uint64)
        rows = np.zeros(len(keys), segment.ROW)
        rows["rest"] = keys[:, 1:]
        name = SegmentName(0, b"made-up-records-", number)
        upload = identity.cipher.sealing(name.key, backend.create(name.key))
        upload.write(segment.encode(identity, keys, rows, [segment.PackEntry(pack, 1)]))
        upload.commit()
        data = mapping.map(name.key)
        loaded.append(Loaded(name, segment.parse(identity, data), data, None))
    merged = merge_segments(backend, identity, loaded, b"made-up-records-", _PARTS)
    assert merged is not None
    for part in loaded:
        backend.delete(part.name.key)
    shutil.rmtree(cache, ignore_errors=True)
    return {"seconds": 0.0}


async def look_up(store: str, lookups: int, passphrase: str | None = None) -> Facts:
    """Open the index for the first time on this machine, and once more; look up ids that are there, and as many others.

    `seconds` is the time of the lookups of ids that are there, `few` the same a few at a time. Content: `failures`.
    """
    shutil.rmtree(_use_cache(store), ignore_errors=True)
    secret = Secret(passphrase) if passphrase else None
    index, first = _open(store, secret)
    index, again = _open(store, secret)
    (loaded,) = index.view.segments
    rng = np.random.default_rng(1)
    picked = np.sort(rng.integers(0, len(loaded.segment), lookups))
    there = []
    for at in range(0, lookups, _PICKED):
        there.append(loaded.segment.ids(picked[at : at + _PICKED]).tobytes())
        segment.release_pages(loaded.data)
    known = split_ids(b"".join(there))
    del there
    rng.shuffle(known)
    found, few = _time(index, known, _FEW)
    again_found, seconds = _time(index, known, _BATCH)
    failures = [
        f"{count} of {lookups} ids that are there were found" for count in (found, again_found) if count < lookups
    ]
    del known
    found, others = _time(index, split_ids(rng.bytes(32 * lookups)), _BATCH)
    if found:
        failures.append(f"{found} ids that are not there were found")
    return {"seconds": seconds, "few": few, "others": others, "first": first, "again": again, "failures": failures}


def _use_cache(store: str) -> Path:
    """Copies of the index are made beside the store, not in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = f"{store}.cache"
    return Path(f"{store}.cache")


def _open(store: str, passphrase: Secret | None) -> tuple[Index, float]:
    started = time.perf_counter()
    opened = Store.open(store, passphrase=passphrase)
    identity = Identity.of(opened.config.key, encrypted=opened.config.encrypted)
    backend = DirectoryBackend(store)
    index = Index(backend, identity, mapping_for(backend, opened.config.store_id, identity.cipher))
    index.reload()
    return index, time.perf_counter() - started


def _time(index: Index, ids: list[bytes], at_once: int) -> tuple[int, float]:
    batches = [ids[at : at + at_once] for at in range(0, len(ids), at_once)]
    started = time.perf_counter()
    found = sum(sum(index.view.contains(batch)) for batch in batches)
    return found, time.perf_counter() - started
