"""Extents: runs of bytes in a disk, and the set algebra on sorted lists of them.

All functions take and return extents sorted by offset; lists they return do not overlap and have no empty members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Extent(NamedTuple):
    """`length` bytes of a disk starting at byte `offset`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length


def merge(extents: Iterable[Extent], gap: int = 0) -> list[Extent]:
    """Sort, and join extents that overlap, touch, or lie at most `gap` bytes apart."""
    merged: list[Extent] = []
    for extent in sorted(extent for extent in extents if extent.length > 0):
        if merged and extent.offset <= merged[-1].end + gap:
            last = merged[-1]
            merged[-1] = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            merged.append(extent)
    return merged


def intersect(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """The bytes that are in both lists."""
    common: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].offset, right[j].offset)
        end = min(left[i].end, right[j].end)
        if start < end:
            common.append(Extent(start, end - start))
        if left[i].end < right[j].end:
            i += 1
        else:
            j += 1
    return common


def gaps(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """The bytes of a disk of `size` bytes that are in none of `extents`."""
    position = 0
    for extent in extents:
        if position >= size:
            break
        if extent.offset > position:
            yield Extent(position, min(extent.offset, size) - position)
        position = max(position, extent.end)
    if position < size:
        yield Extent(position, size - position)


def complement(extents: Iterable[Extent], size: int) -> list[Extent]:
    """The same as a list."""
    return list(gaps(extents, size))


def subtract(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """The bytes of `left` that are not in `right`."""
    end = left[-1].end if left else 0
    return intersect(left, complement(right, end))


def align(extents: Iterable[Extent], unit: int, size: int) -> list[Extent]:
    """Cut extents at `size`, round them outwards to multiples of `unit` bytes within it, and merge."""
    rounded: list[Extent] = []
    for extent in extents:
        start = extent.offset // unit * unit
        end = min(-(-extent.end // unit) * unit, size)
        if extent.length > 0 and extent.offset < size:
            rounded.append(Extent(start, end - start))
    return merge(rounded)


def clip(extents: Iterable[Extent], size: int) -> list[Extent]:
    """Cut everything at and after byte `size`."""
    return intersect(merge(extents), [Extent(0, size)] if size else [])


def split(extents: Iterable[Extent], limit: int) -> Iterator[Extent]:
    """Cut extents into pieces that end at multiples of `limit` bytes, each at most `limit` long."""
    for extent in extents:
        offset = extent.offset
        while offset < extent.end:
            end = min(extent.end, (offset // limit + 1) * limit)
            yield Extent(offset, end - offset)
            offset = end


def total(extents: Iterable[Extent]) -> int:
    """The sum of the lengths, in bytes."""
    return sum(extent.length for extent in extents)
