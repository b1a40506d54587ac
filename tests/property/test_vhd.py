"""VHD streams: what is written is read back, what is damaged is refused."""

import random
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import vhd
from protocol.errors import FormatError
from protocol.extent import total
from protocol.vhd_stream import Data, VhdReader

BLOCK = vhd.BLOCK_SIZE
SECTOR = vhd.SECTOR


def stream_of(size: int, blocks: dict[int, bytes], **more) -> bytes:
    writer = vhd.VhdWriter(size, sorted(blocks), **more)
    parts = [writer.head()]
    for number in sorted(blocks):
        parts += [writer.block_prefix(), blocks[number]]
    return b"".join([*parts, writer.trailer()])


def read_back(stream: bytes, size: int, cuts: random.Random) -> tuple[bytes, vhd.Head]:
    content = bytearray(-(-size // BLOCK) * BLOCK)
    reader = VhdReader(len(stream))
    heads = []
    at = 0
    while at < len(stream):
        length = cuts.choice([1, 511, 512, 5000, 1 << 20, 5 << 20])
        for event in reader.feed(stream[at : at + length]):
            if isinstance(event, Data):
                content[event.offset : event.offset + len(event.view)] = event.view
            elif isinstance(event, vhd.Head):
                heads.append(event)
        at += length
    reader.finish()
    (head,) = heads
    return bytes(content[:size]), head


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 6 * BLOCK // SECTOR),
    st.sets(st.integers(0, 5)),
    st.booleans(),
    st.integers(0, 1000),
)
def test_round_trip(sectors, numbers, differencing, seed):
    rng = random.Random(seed)
    size = sectors * SECTOR
    numbers = {number for number in numbers if number * BLOCK < size}
    blocks = {number: rng.randbytes(4096) * (BLOCK // 4096) for number in numbers}
    parent = (uuid.UUID(int=7), "/parent.vhd") if differencing else None
    stream = stream_of(size, blocks, parent=parent)
    assert len(stream) == vhd.stream_length(size, len(blocks))
    expected = bytearray(-(-size // BLOCK) * BLOCK)
    for number, data in blocks.items():
        expected[number * BLOCK : (number + 1) * BLOCK] = data
    content, head = read_back(stream, size, rng)
    assert content == expected[:size]
    assert head.size == size
    assert total(head.allocated()) == sum(min(BLOCK, size - number * BLOCK) for number in numbers)
    assert (head.footer.kind == vhd.DIFFERENCING) == differencing
    assert head.header.parent_name == ("/parent.vhd" if differencing else "")


def test_sectors_whose_bit_is_clear_are_no_data():
    data = bytearray(stream_of(BLOCK, {0: b"\x11" * BLOCK}))
    head = vhd.parse_head(data)
    assert head is not None
    bitmap = head.bat[0] * SECTOR
    data[bitmap] = 0b01000001
    data[bitmap + 511] = 0
    reader = VhdReader(len(data))
    extents = [(item.offset, len(item.view)) for item in reader.feed(bytes(data)) if isinstance(item, Data)]
    reader.finish()
    sectors = {sector for offset, length in extents for sector in range(offset // SECTOR, (offset + length) // SECTOR)}
    assert sectors == {1, *range(7, BLOCK // SECTOR - 8)}


STREAM = stream_of(3 * BLOCK + SECTOR, {0: bytes(BLOCK), 3: b"\x22" * BLOCK})
STRUCTURE = [*range(2048 + SECTOR), *range(len(STREAM) - SECTOR, len(STREAM))]


def swallow(stream: bytes, length: int | None) -> None:
    reader = VhdReader(length)
    for offset in range(0, len(stream), 1 << 20):
        for _ in reader.feed(stream[offset : offset + (1 << 20)]):
            pass
    reader.finish()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STRUCTURE), st.integers(1, 255))
def test_a_flipped_byte_of_the_structure_is_found_or_harmless(position, flip):
    damaged = bytearray(STREAM)
    damaged[position] ^= flip
    # Only the place of the parent locator, and the table's entries for absent blocks, are free to change unnoticed.
    free = range(1536, 2048)
    try:
        swallow(bytes(damaged), len(damaged))
    except FormatError as error:
        assert error.format == "VHD"
        assert error.offset is not None
    else:
        assert position in free or position in range(2048 + 16, 2048 + SECTOR)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(STREAM) - 1))
def test_a_stream_that_is_cut_is_refused(length):
    with pytest.raises(FormatError):
        swallow(STREAM[:length], len(STREAM))


def test_surplus_bytes_are_refused():
    with pytest.raises(FormatError):
        swallow(STREAM + b"HTTP/1.1 500 Internal Error\r\n", len(STREAM))


def with_bat(*entries: int) -> bytes:
    data = bytearray(STREAM)
    data[2048 : 2048 + 4 * len(entries)] = struct.pack(f">{len(entries)}I", *entries)
    return bytes(data)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ((5, 6), "overlaps"),
        ((0, 4), "within the head"),
        ((5, 5), "overlaps"),
        ((4097 + 5 - 1, 5), "overlaps"),
        ((1 << 31, vhd.ABSENT), "past the end"),
    ],
    ids=["overlap", "in the header", "twice", "overlap, out of order", "past the end"],
)
def test_an_allocation_table_that_lies_is_refused(entries, reason, announced):
    stream = with_bat(*entries)
    # Whoever does not know the length only finds out that the stream ends before the block.
    expected = "too early" if reason == "past the end" and not announced else reason
    with pytest.raises(FormatError, match=expected):
        swallow(stream, len(stream) if announced else None)


@pytest.mark.parametrize("entries", [0xFFFFFFFF, 1 << 26, 2])
def test_absurd_counts_are_refused_before_anything_is_allocated(entries):
    data = bytearray(STREAM)
    data[512 + 28 : 512 + 32] = struct.pack(">I", entries)
    data[512 + 36 : 512 + 40] = bytes(4)
    data[512 + 36 : 512 + 40] = struct.pack(">I", ~sum(data[512:1536]) & 0xFFFFFFFF)
    with pytest.raises(FormatError):
        vhd.parse_head(data)
