"""VHDs as other writers lay them out: any block size, blocks in any order, gaps, a batmap, a short last footer."""

import random
import struct
import uuid
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import vhd
from protocol.errors import FormatError
from protocol.extent import Extent
from protocol.vhd_stream import Data, End, VhdReader

SECTOR = 512


def checksummed(data: bytes, at: int) -> bytes:
    value = ~sum(data) & 0xFFFFFFFF
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


def footer(size: int, kind: int, header_offset: int, version: int = 0x10000) -> bytes:
    fields = struct.pack(
        ">8sIIQI4sI4sQQIII16sB427x", b"conectix", 2, version, header_offset, 0, b"else", 1, b"\0" * 4, size, size, 0,
        kind, 0, uuid.UUID(int=1).bytes, 0,
    )  # fmt: skip
    return checksummed(fields, 64)


def header(bat: int, entries: int, block: int) -> bytes:
    fields = struct.pack(
        ">8sQQIIII16sII512s192s256x", b"cxsparse", 2**64 - 1, bat, 0x10000, entries, block, 0, bytes(16), 0, 0, b"", b""
    )
    return checksummed(fields, 36)


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def build(
    size: int,
    block: int,
    contents: dict[int, tuple[bytes, bytes]],
    order: Iterable[int],
    gap: int = 0,
    header_offset: int = 512,
) -> bytes:
    """A stream with bitmap and content of each block, placed in `order`, `gap` sectors apart."""
    entries = -(-size // block)
    bat_at = header_offset + 1024 + gap * SECTOR
    bat = [vhd.ABSENT] * entries
    body = b""
    start = bat_at + -(-4 * entries // SECTOR) * SECTOR
    for number in order:
        body += b"tdbatmap".ljust(gap * SECTOR, b"?") if gap else b""
        bat[number] = (start + len(body)) // SECTOR
        body += padded(contents[number][0]) + contents[number][1]
    table = struct.pack(f">{entries}I", *bat)
    table = table.ljust(-(-len(table) // SECTOR) * SECTOR, b"\xff")
    ending = footer(size, vhd.DYNAMIC, header_offset)
    head = ending.ljust(header_offset, b"\0") + header(bat_at, entries, block)
    return head.ljust(bat_at, b"\0") + table + body + ending


def read(stream: bytes, piece: int, length: int = 0) -> tuple[vhd.Head, list[tuple[int, bytes]]]:
    reader = VhdReader(length or len(stream))
    data: list[tuple[int, bytes]] = []
    heads: list[vhd.Head] = []
    ends: list[End] = []
    for at in range(0, len(stream), piece):
        for event in reader.feed(stream[at : at + piece]):
            match event:
                case Data(offset, view):
                    data.append((offset, bytes(view)))
                case End():
                    ends.append(event)
                case vhd.Head():
                    heads.append(event)
    reader.finish()
    assert ends == [End(len(stream))]
    return heads[0], data


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([4096, 8192, 65536, 524288]),
    st.integers(1, 9),
    st.integers(0, 511),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([512, 1024, 4096]),
    st.sampled_from([1, 100, 512, 70_000, 1 << 24]),
    st.integers(0, 10**6),
)
def test_every_layout_gives_the_same_bytes(block, count, short, gap, header_offset, piece, seed):
    rng = random.Random(seed)
    size = count * block - short
    numbers = [n for n in range(count) if rng.random() < 0.6]
    contents = {}
    expected = bytearray(count * block)
    for number in numbers:
        bits = bytes(rng.choices([0, 0xFF, 0x80, 0x01, 0xA5], k=max(1, block // SECTOR // 8)))
        content = rng.randbytes(block)
        contents[number] = (bits, content)
        for sector in range(block // SECTOR):
            if bits[sector // 8] & (0x80 >> sector % 8):
                at = number * block + sector * SECTOR
                expected[at : at + SECTOR] = content[sector * SECTOR : (sector + 1) * SECTOR]
    order = rng.sample(numbers, len(numbers))
    stream = build(size, block, contents, order, gap, header_offset)
    if piece < 100 and len(stream) > 200_000:
        piece = 997
    head, data = read(stream, piece)
    found = bytearray(count * block)
    seen = set()
    for offset, content in data:
        assert not seen & set(range(offset, offset + len(content), 97))
        found[offset : offset + len(content)] = content
    assert found == expected
    assert head.header.block_size == block
    assert {n for n, at in enumerate(head.bat) if at != vhd.ABSENT} == set(numbers)
    runs = head.allocated()
    assert all(isinstance(run, Extent) and run.end <= size for run in runs)
    assert {n for n in range(count) if any(run.offset <= n * block < run.end for run in runs)} == {
        n for n in numbers if n * block < size
    }


def test_a_footer_without_its_last_byte_is_taken():
    stream = build(8192, 4096, {1: (b"\xff", b"x" * 4096)}, [1])[:-1]
    _, data = read(stream, 100_000)
    assert data == [(4096, b"x" * 4096)]


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (16, struct.pack(">Q", 1 << 63)),  # where the header is
        (16, struct.pack(">Q", 3 << 20)),
        (60, struct.pack(">I", 2)),  # a fixed disk
        (48, struct.pack(">Q", 1 << 60)),  # its size
        (12, struct.pack(">I", 0x20000)),  # the version
    ],
    ids=["header out of reach", "header far away", "type", "size", "version"],
)
def test_footers_that_cannot_be(at: int, what: bytes):
    stream = bytearray(build(8192, 4096, {}, []))
    stream[at : at + len(what)] = what
    stream[64:68] = bytes(4)
    stream[:512] = checksummed(bytes(stream[:512]), 64)
    with pytest.raises(FormatError) as caught:
        read(bytes(stream), 512)
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (16, struct.pack(">Q", 0)),  # where the table is
        (16, struct.pack(">Q", 1 << 40)),
        (28, struct.pack(">I", 1)),  # how many blocks
        (28, struct.pack(">I", 1 << 31)),
        (32, struct.pack(">I", 0)),  # how large
        (32, struct.pack(">I", 6000)),
        (32, struct.pack(">I", 1 << 31)),
        (24, struct.pack(">I", 0x30000)),  # the version
    ],
    ids=["table in the footer", "table far away", "few", "many", "empty", "odd", "large", "version"],
)
def test_headers_that_cannot_be(at: int, what: bytes):
    stream = bytearray(build(8192, 4096, {}, []))
    stream[512 + at : 512 + at + len(what)] = what
    stream[512 + 36 : 512 + 40] = bytes(4)
    stream[512:1536] = checksummed(bytes(stream[512:1536]), 36)
    with pytest.raises(FormatError):
        read(bytes(stream), 512)


def test_a_head_alone_gives_the_allocation_map():
    writer = vhd.VhdWriter(100 << 30, [0, 1, 2, 700, 51199])
    head = writer.head()
    assert vhd.parse_head(head[:-1]) is None
    assert vhd.parse_head(head[:600]) is None
    parsed = vhd.parse_head(head)
    assert parsed is not None
    block = vhd.BLOCK_SIZE
    assert parsed.allocated() == [(0, 3 * block), (700 * block, block), ((100 << 30) - block, block)]
