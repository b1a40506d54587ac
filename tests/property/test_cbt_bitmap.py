"""CBT bitmaps: the extents are exactly the set bits, plus what no bit vouches for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import cbt
from protocol.cbt import GRANULE
from protocol.errors import FormatError
from protocol.extent import Extent, align, merge


def by_hand(bitmap: bytes, size_from: int, size_to: int, unit: int = GRANULE) -> list[Extent]:
    """The same by asking for every granule in turn."""
    vouched = min(len(bitmap) * 8, size_from // GRANULE)
    found = [Extent(i * GRANULE, GRANULE) for i in range(vouched) if bitmap[i // 8] & (0x80 >> i % 8)]
    return align([*found, Extent(vouched * GRANULE, size_to - vouched * GRANULE)], unit, size_to)


@contextmanager
def cut_small(row: int, step: int, piece: int) -> Iterator[None]:
    """What is dealt with in pieces, cut into smaller ones."""
    before = cbt._ROW, cbt._STEP, cbt._PIECE
    cbt._ROW, cbt._STEP, cbt._PIECE = row, step, piece
    try:
        yield
    finally:
        cbt._ROW, cbt._STEP, cbt._PIECE = before


# Runs of equal bytes are what real bitmaps consist of, and where runs of bits continue from byte to byte.
bitmaps = st.lists(
    st.one_of(st.binary(max_size=5), st.sampled_from([b"\xff" * 9, b"\x00" * 9, b"\x01", b"\x80"])), max_size=8
).map(b"".join)
sizes = st.integers(0, 600 * GRANULE)


units = st.sampled_from([GRANULE // 4, *(GRANULE << shift for shift in range(7))])


@given(bitmaps, sizes, st.one_of(st.just(0), sizes), units)
def test_every_set_bit_and_everything_past_the_reach_is_read(bitmap: bytes, size: int, growth: int, unit: int) -> None:
    found = cbt.changed_extents(bitmap, size, size + growth, unit)
    assert list(found) == by_hand(bitmap, size, size + growth, unit)


bounds = st.one_of(st.none(), st.integers(-70, 70))


@given(
    st.lists(st.sampled_from([0, 0, 255, 255, 1, 128, 0x18, 0x55]), max_size=200).map(bytes),
    st.integers(0, 40 * GRANULE),
    units,
    st.tuples(st.sampled_from([8, 16, 64]), st.integers(1, 9), st.sampled_from([1, 2, 16, 256])),
    st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1, -3])),
)
def test_the_extents_are_a_sequence_like_the_list_of_them(
    bitmap: bytes, beyond: int, unit: int, cut: tuple[int, int, int], part: slice
) -> None:
    size = len(bitmap) * 8 * GRANULE + beyond
    wanted = by_hand(bitmap, size, size, unit)
    with cut_small(*cut):
        found = cbt.changed_extents(bitmap, size, size, unit)
        assert list(found) == wanted
        assert list(reversed(found)) == wanted[::-1]
        assert (len(found), bool(found)) == (len(wanted), bool(wanted))
        assert found[part] == wanted[part]
        for index in (len(wanted), -len(wanted) - 1):
            with pytest.raises(IndexError):
                found[index]
        assert [found[index - len(wanted)] for index in range(len(wanted))] == wanted


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9))), st.integers(0, 40))
def test_extents_become_a_bitmap_and_come_back(spans: list[tuple[int, int]], padding: int) -> None:
    size = 310 * GRANULE
    extents = merge(Extent(start * GRANULE, length * GRANULE) for start, length in spans)
    bitmap = cbt.decode(cbt.encode(cbt.bitmap_of(extents, size) + b"\xff" * padding))
    assert list(cbt.changed_extents(bitmap, size, size)) == extents


@given(st.integers(0, 40 * GRANULE), st.integers(1, 3 * GRANULE))
def test_a_write_marks_every_granule_it_touches(offset: int, length: int) -> None:
    size = 44 * GRANULE
    bitmap = cbt.bitmap_of([Extent(offset, length)], size)
    assert len(bitmap) == 6
    assert list(cbt.changed_extents(bitmap, size, size)) == align([Extent(offset, length)], GRANULE, size)


def test_first_bit_is_the_most_significant() -> None:
    size = 16 * GRANULE
    assert list(cbt.changed_extents(cbt.decode("gAE="), size, size)) == [
        Extent(0, GRANULE),
        Extent(15 * GRANULE, GRANULE),
    ]


def test_the_tail_is_read_whatever_the_bitmap_says() -> None:
    unaligned = 8 * GRANULE + 512
    assert list(cbt.changed_extents(b"\x00\x00", unaligned, unaligned)) == [Extent(8 * GRANULE, 512)]
    assert list(cbt.changed_extents(b"", GRANULE, GRANULE)) == [Extent(0, GRANULE)]
    assert list(cbt.changed_extents(b"\x00\x00", 8 * GRANULE, 10 * GRANULE)) == [Extent(8 * GRANULE, 2 * GRANULE)]
    # What was unaligned before it grew: the granule at the seam belongs to the new part.
    assert list(cbt.changed_extents(b"\x00\x00", unaligned, 10 * GRANULE)) == [Extent(8 * GRANULE, 2 * GRANULE)]


@pytest.mark.parametrize("text", ["gA", "gA=\u00e9=", "!!!!"])
def test_what_is_not_base64_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match="CBT bitmap"):
        cbt.decode(text)


def test_white_space_in_base64_is_ignored() -> None:
    assert cbt.decode(b"gA\r\nE=\n") == b"\x80\x01"


def test_a_disk_that_shrank_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="CBT bitmap"):
        cbt.changed_extents(b"\xff", 8 * GRANULE, 7 * GRANULE)
