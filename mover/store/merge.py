"""Merging index segments, so that a lookup asks a few large ones instead of one for every commit there ever was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mover.errors import StoreDamagedError
from mover.store import segment as segments
from mover.store.backend import Backend
from mover.store.file_map import pieces
from mover.store.identity import Identity
from mover.store.index import IndexView, Loaded
from mover.store.names import PackName, SegmentName
from mover.store.segment import I64, MAX_LEVEL, U32, U64, PackEntry

# So many segments of one level are left alone; one more, and they become one of the next level.
MOST = 8
# Entries sorted at a time: what bounds memory, whatever the size of the index.
_SLICE = 128 << 10

_LEFT_OUT = 0xFFFFFFFF

Rows = npt.NDArray[np.void]


def due(view: IndexView) -> list[Loaded]:
    """The segments that should be merged now: all of the lowest level that has too many, and all below it."""
    for level in range(MAX_LEVEL):
        chosen = [loaded for loaded in view.segments if loaded.name.level <= level]
        if sum(loaded.name.level == level for loaded in chosen) > MOST:
            return chosen
    return []


def merge(
    backend: Backend, identity: Identity, chosen: Sequence[Loaded], wid: bytes, number: int
) -> SegmentName | None:
    """Write one segment in place of `chosen`, durable on return. None if too few of them are fit to be merged.

    Nothing is lost, not even a second place of the same id: whoever merges may have been shut out meanwhile, and does
    not know which of the two places a prune has counted on.

    A segment whose columns are damaged stays as it is: its damage must not get a new checksum. What the merged one
    replaces may be deleted then; whoever has it mapped keeps it, and whoever misses it looks again.
    """
    intact = [loaded for loaded in chosen if segments.columns_intact(identity, loaded.data)]
    if len(intact) < 2 or _too_many(intact):
        return None
    level = max(loaded.name.level for loaded in intact) + 1
    return _write(backend, identity, _Merging(intact), SegmentName(level, wid, number))


def rewrite(
    backend: Backend,
    identity: Identity,
    chosen: Sequence[Loaded],
    without: Callable[[PackName], bool],
    wid: bytes,
    number: int,
) -> SegmentName | None:
    """Write one segment in place of `chosen` that does not list some packs. None if no pack is left to be listed.

    It has the level of the highest of them, so that pruning often does not use the levels up. Raises what the store
    raises, and `StoreDamagedError` if there are more records than one segment can have.
    """
    if _too_many(chosen):
        raise StoreDamagedError(
            f"the index of {backend.location} has more records than can be rewritten at once; nothing is deleted",
            "a store of this size is better made several, by pool or tenant",
        )
    merging = _Merging(chosen, without)
    if not merging.packs:
        return None
    return _write(backend, identity, merging, SegmentName(max(loaded.name.level for loaded in chosen), wid, number))


def _too_many(chosen: Sequence[Loaded]) -> bool:
    return sum(len(loaded.segment) for loaded in chosen) > segments.MAX_RECORDS


def _write(backend: Backend, identity: Identity, merging: _Merging, name: SegmentName) -> SegmentName | None:
    upload = identity.cipher.sealing(name.key, backend.create(name.key))
    try:
        hasher = identity.checker()

        def write(data: bytes) -> None:
            hasher.update(data)
            for piece in pieces([data]):
                upload.write(piece)

        write(segments.HEAD)
        counts, count = merging.write_prefixes(write)
        merging.write_rows(write)
        fence = np.zeros(len(counts) + 1, np.uint32)
        np.cumsum(counts, out=fence[1:])
        window = max(1, int(np.max(counts)))
        replaces = [loaded.name for loaded in merging.sources]
        upload.write(
            [
                segments.encode_tables(
                    identity, hasher.digest(), count, fence, window, merging.packs, replaces, name.level
                )
            ]
        )
        return name if upload.commit() else None
    finally:
        upload.abort()


@dataclass
class _Merging:
    """The entries of several segments in order, a slice of all possible ids at a time."""

    sources: Sequence[Loaded]
    without: Callable[[PackName], bool] = lambda _: False

    def __post_init__(self) -> None:
        listed = {pack for one in self.sources for pack in one.segment.packs}
        self.packs: list[PackEntry] = sorted((pack for pack in listed if not self.without(pack.name)), key=_by_name)
        numbers = {pack: number for number, pack in enumerate(self.packs)}
        self._renumbered = [
            np.array([numbers.get(pack, _LEFT_OUT) for pack in one.segment.packs], np.uint32) for one in self.sources
        ]
        total = sum(len(one.segment) for one in self.sources)
        self._slices = 1 << (total // _SLICE).bit_length()
        self._bits = segments.fence_bits(total)

    def write_prefixes(self, write: Callable[[bytes], None]) -> tuple[U32, int]:
        """The first column; how many entries fall between neighbours of the fence, and how many there are."""
        counts = np.zeros(1 << self._bits, np.uint32)
        count = 0
        for prefix, _ in self._entries():
            buckets = (prefix >> np.uint64(64 - self._bits)).astype(np.int64)
            if len(buckets):
                low = int(buckets[0])
                found = np.bincount(buckets - low)
                counts[low : low + len(found)] += found.astype(np.uint32)
            count += len(prefix)
            write(prefix.tobytes())
        return counts, count

    def write_rows(self, write: Callable[[bytes], None]) -> None:
        """The second column."""
        for _, rows in self._entries():
            write(rows.tobytes())

    def _entries(self) -> Iterator[tuple[U64, Rows]]:
        for number in range(self._slices):
            low = number << 64 - self._slices.bit_length() + 1
            high = (number + 1 << 64 - self._slices.bit_length() + 1) - 1
            yield self._slice(low, high)
            for source in self.sources:
                segments.release_pages(source.data)

    def _slice(self, low: int, high: int) -> tuple[U64, Rows]:
        """Entries with prefixes from `low` to `high`, each place of an id once, the usable ones first."""
        prefixes: list[U64] = []
        rows: list[Rows] = []
        unusable: list[npt.NDArray[np.bool_]] = []
        for source, renumbered in zip(self.sources, self._renumbered, strict=True):
            segment = source.segment
            start = int(np.searchsorted(segment.prefix, np.uint64(low)))
            end = int(np.searchsorted(segment.prefix, np.uint64(high), side="right"))
            part = segment.rows[start:end].copy()
            valid = part["pack"] < len(renumbered)
            valid[valid] &= renumbered[part["pack"][valid]] != _LEFT_OUT
            part = part[valid]
            usable = np.ones(len(part), np.bool_) if source.kept is None else source.kept[part["pack"]]
            part["pack"] = renumbered[part["pack"]] if len(renumbered) else part["pack"]
            prefixes.append(segment.prefix[start:end][valid])
            rows.append(part)
            unusable.append(~usable)
        prefix, row = np.concatenate(prefixes), np.concatenate(rows)
        place = (row["offset"], row["pack"], np.concatenate(unusable))
        order: I64 = np.lexsort((*place, prefix))
        alike = prefix[order][1:] == prefix[order][:-1]
        rest = row["rest"]
        same = alike & (rest[order][1:] == rest[order][:-1]).all(axis=1)
        if (alike != same).any():
            # Different ids with the same first eight bytes: only all four words bring equal ones together.
            order = np.lexsort((*place, rest[:, 2], rest[:, 1], rest[:, 0], prefix))
            same = (prefix[order][1:] == prefix[order][:-1]) & (rest[order][1:] == rest[order][:-1]).all(axis=1)
        for column in ("pack", "offset"):
            same &= row[column][order][1:] == row[column][order][:-1]
        first = np.concatenate([np.ones(min(len(order), 1), np.bool_), ~same])
        return prefix[order][first], row[order][first]


def _by_name(pack: PackEntry) -> tuple[bytes, int, int, int]:
    return pack.name.wid, pack.name.kind, pack.name.seq, pack.size
