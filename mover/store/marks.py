"""Marks on the records of an index segment: one bit each, and what is told of those that are marked.

A segment may be larger than memory. It is walked a slice at a time, and the mapped pages of each are let go.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mover.store import segment as segments
from mover.store.index import Loaded, split_ids
from mover.store.names import PackName
from mover.store.scrub import Entry
from mover.store.segment import I64, U64

# So many rows are walked before their pages are let go: 12 MiB of a segment. A multiple of 8.
_SLICE = 256 << 10
# Marked records are gathered for so many packs at a time that there are about as many as this: 48 bytes each.
_TOGETHER = 256 << 10


class Marks:
    """A mark for each row of `loaded`. One thread at a time."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._segment = loaded.segment
        self._bits = np.zeros(-(-len(loaded.segment) // 8), np.uint8)

    def add(self, rows: I64) -> I64:
        """Mark `rows`. Of those that were not marked before, the positions within `rows`; of equal ones the first."""
        once, first = np.unique(rows, return_index=True)
        places = once >> 3
        bits = (1 << (once & 7)).astype(np.uint8)
        fresh = self._bits[places] & bits == 0
        np.bitwise_or.at(self._bits, places, bits)
        return np.sort(first[fresh])

    def totals(self) -> tuple[I64, I64]:
        """For each pack of the segment, how many of its records are marked, and the bytes of their payloads."""
        packs = len(self._segment.packs)
        counts, lengths = np.zeros(packs, np.int64), np.zeros(packs, np.int64)
        for rows in self._marked():
            numbers = self._segment.rows["pack"][rows]
            counts += np.bincount(numbers, minlength=packs)
            sums = np.bincount(numbers, weights=self._segment.rows["length"][rows], minlength=packs)
            lengths += sums.astype(np.int64)
        return counts, lengths

    def by_pack(self, chosen: npt.NDArray[np.bool_] | None = None) -> Iterator[tuple[PackName, list[Entry]]]:
        """The marked records pack by pack, of those packs that are `chosen` (one of the segment each); None: of all."""
        counts, _ = self.totals()
        numbers = np.flatnonzero(counts if chosen is None else counts * chosen)
        groups = (np.cumsum(counts[numbers]) - 1) // _TOGETHER
        for together in np.split(numbers, np.flatnonzero(np.diff(groups)) + 1):
            if len(together):
                wanted = np.zeros(len(counts), np.bool_)
                wanted[together] = True
                yield from self._gather(wanted)

    def _gather(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[PackName, list[Entry]]]:
        """The marked records of the `wanted` packs, which are not too many to be held in memory."""
        prefixes: list[U64] = []
        fields: list[npt.NDArray[np.void]] = []
        for rows in self._marked():
            inside = rows[wanted[self._segment.rows["pack"][rows]]]
            prefixes.append(self._segment.prefix[inside])
            fields.append(self._segment.rows[inside])
        yield from _by_pack(self._loaded, np.concatenate(prefixes), np.concatenate(fields))

    def _marked(self) -> Iterator[I64]:
        """The rows that are marked, in order, some at a time."""
        for start in range(0, len(self._segment), _SLICE):
            bits = self._bits[start // 8 : (start + _SLICE) // 8]
            if bits.any():
                yield np.flatnonzero(np.unpackbits(bits, bitorder="little")) + start
                segments.release_pages(self._loaded.data)


def by_pack(loaded: Loaded, rows: I64) -> Iterator[tuple[PackName, list[Entry]]]:
    """The entries in `rows` of a segment, pack by pack."""
    yield from _by_pack(loaded, loaded.segment.prefix[rows], loaded.segment.rows[rows])


def entries_of(loaded: Loaded, rows: I64) -> list[Entry]:
    """What a segment says about the records in `rows`."""
    return _entries(loaded.segment.prefix[rows], loaded.segment.rows[rows])


def _by_pack(loaded: Loaded, prefix: U64, fields: npt.NDArray[np.void]) -> Iterator[tuple[PackName, list[Entry]]]:
    packs = fields["pack"]
    order = np.argsort(packs, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(packs[order])) + 1):
        if len(group):
            yield loaded.segment.packs[int(packs[group[0]])].name, _entries(prefix[group], fields[group])


def _entries(prefix: U64, fields: npt.NDArray[np.void]) -> list[Entry]:
    ids = split_ids(segments.join_ids(prefix, fields).tobytes())
    columns = fields[["offset", "length", "meta"]].tolist()
    return [Entry(offset, length, meta, id) for id, (offset, length, meta) in zip(ids, columns, strict=True)]
