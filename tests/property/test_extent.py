"""The extent algebra against plain sets of bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocol.extent import Extent, align, clip, complement, intersect, merge, split, subtract, total

extents = st.lists(st.builds(Extent, st.integers(0, 120), st.integers(0, 20)), max_size=10)


def bytes_of(items) -> set[int]:
    return {byte for extent in items for byte in range(extent.offset, extent.end)}


def assert_normal(items) -> None:
    assert all(extent.length > 0 for extent in items)
    assert all(left.end < right.offset for left, right in pairwise(items))


@given(extents)
def test_merge(items):
    merged = merge(items)
    assert_normal(merged)
    assert bytes_of(merged) == bytes_of(items)


@given(extents, st.integers(0, 10))
def test_merge_closes_only_gaps_up_to_the_limit(items, gap):
    merged = merge(items, gap)
    assert bytes_of(items) <= bytes_of(merged)
    assert all(right.offset - left.end > gap for left, right in pairwise(merged))
    for hole in subtract(merged, merge(items)):
        assert hole.length <= gap


@given(extents, extents)
def test_intersect_and_subtract(left, right):
    left, right = merge(left), merge(right)
    assert bytes_of(intersect(left, right)) == bytes_of(left) & bytes_of(right)
    assert bytes_of(subtract(left, right)) == bytes_of(left) - bytes_of(right)


@given(extents, st.integers(0, 150))
def test_complement_and_clip(items, size):
    items = merge(items)
    whole = set(range(size))
    assert bytes_of(complement(items, size)) == whole - bytes_of(items)
    assert bytes_of(clip(items, size)) == whole & bytes_of(items)


@given(extents, st.integers(1, 16), st.integers(0, 150))
def test_align_rounds_outwards_and_stops_at_the_end(items, unit, size):
    aligned = align(items, unit, size)
    assert_normal(aligned)
    inside = bytes_of(items) & set(range(size))
    units = {byte // unit for byte in inside}
    assert bytes_of(aligned) == {byte for byte in range(size) if byte // unit in units}


@given(extents, st.integers(1, 16))
def test_split_cuts_at_multiples(items, limit):
    items = merge(items)
    pieces = list(split(items, limit))
    assert total(pieces) == total(items)
    assert bytes_of(pieces) == bytes_of(items)
    assert all(piece.offset // limit == (piece.end - 1) // limit for piece in pieces)
