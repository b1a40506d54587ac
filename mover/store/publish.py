"""Listing durable packs in an index segment, from the tables that were written into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mover.errors import StoreDamagedError
from mover.store import segment as segments
from mover.store.backend import Backend
from mover.store.file_map import pieces
from mover.store.identity import Identity
from mover.store.index import split_ids
from mover.store.names import SegmentName
from mover.store.pack_writer import Written
from mover.store.segment import PackEntry

# After this many new records a segment is published: a run that is killed has not worked for nothing, and what is held
# in memory until then stays small.
PUBLISH_RECORDS = 128 << 10


def publish_written(backend: Backend, identity: Identity, name: SegmentName, packs: Sequence[Written]) -> list[bytes]:
    """As `publish`, of packs that were just written."""
    entries = [PackEntry(one.name, one.size) for one in packs]
    return publish(backend, identity, name, entries, [one.entries for one in packs])


def publish(
    backend: Backend, identity: Identity, name: SegmentName, packs: Sequence[PackEntry], tables: Sequence[bytes]
) -> list[bytes]:
    """Put the segment `name`, which lists `packs` by their `tables`; returns the ids. Raises what the store raises."""
    keys, rows = columns(tables)
    upload = identity.cipher.sealing(name.key, backend.create(name.key))
    try:
        for piece in pieces(segments.encode(identity, keys, rows, packs)):
            upload.write(piece)
        if not upload.commit():
            raise StoreDamagedError(f"{name.key} exists already")
    finally:
        upload.abort()
    return split_ids(keys.tobytes())


_ENTRY = np.dtype([("id", "V32"), ("offset", "<u4"), ("length", "<u4"), ("meta", "<u4"), ("check", "<u4")])


def columns(tables: Sequence[bytes]) -> tuple[segments.U64, npt.NDArray[np.void]]:
    """The tables of packs, as keys and rows of a segment; packs are numbered in the order given."""
    entries = [np.frombuffer(table, _ENTRY) for table in tables]
    joined = np.concatenate(entries) if entries else np.empty(0, _ENTRY)
    keys = np.ascontiguousarray(joined["id"]).view("<u8").reshape(-1, 4)
    rows = np.empty(len(joined), segments.ROW)
    rows["rest"] = keys[:, 1:]
    rows["pack"] = np.repeat(np.arange(len(entries), dtype=np.uint32), [len(one) for one in entries])
    for name in ("offset", "length", "meta"):
        rows[name] = joined[name]
    return keys, rows
