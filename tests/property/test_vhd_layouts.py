"""VHDs as other writers lay them out: any block size, blocks in any order, gaps, a batmap, a short last footer."""

import random
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import vhd
from protocol.errors import FormatError
from protocol.extent import Extent
from protocol.vhd_stream import Data, End, VhdReader
from tests.vhd_fixtures import SECTOR, build, checksummed


def read(stream: bytes, piece: int, *, announced: bool = True) -> tuple[vhd.Head, list[tuple[int, bytes]]]:
    reader = VhdReader(len(stream) if announced else None)
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
    st.booleans(),
    st.sampled_from([b"", b"a name", b"n" * 600]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_every_layout_gives_the_same_bytes(
    block, count, short, gap, header_offset, piece, with_batmap, name_behind, announced, seed
):
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
    layout = {"with_batmap": with_batmap, "name_behind": name_behind}
    stream = build(size, block, contents, order, gap, header_offset, **layout)
    if piece < 100 and len(stream) > 200_000:
        piece = 997
    head, data = read(stream, piece, announced=announced)
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


@pytest.mark.parametrize("more", [{}, {"with_batmap": True}, {"name_behind": b"x" * 513}])
@pytest.mark.parametrize("numbers", [[], [0], [2, 0, 1]])
def test_without_an_announced_length_the_footer_is_where_the_tables_end(numbers: list[int], more: dict) -> None:
    stream = build(3 * 4096, 4096, {n: (b"\xff", bytes([n]) * 4096) for n in numbers}, numbers, **more)
    for piece in (1, 512, len(stream)):
        _, data = read(stream, piece, announced=False)
        assert b"".join(content for _, content in sorted(data)) == b"".join(bytes([n]) * 4096 for n in sorted(numbers))
    for length in (*range(0, len(stream), 61), len(stream) - 1):
        with pytest.raises(FormatError):
            read(stream[:length], 4096, announced=False)
    surplus = [stream + b"\0", stream + stream[-512:], stream + b"HTTP/1.1 500 Internal Error\r\n"]
    for wrong in [*surplus, stream[:-512] + bytes(512) + stream[-512:]]:
        with pytest.raises(FormatError):
            read(wrong, 4096, announced=False)


@pytest.mark.parametrize("announced", [True, False])
def test_a_response_where_the_disk_should_be_is_named(announced: bool) -> None:
    stream = build(3 * 4096, 4096, {1: (b"\xff", b"x" * 4096)}, [1])
    response = b"HTTP/1.1 500 Internal Error\r\ncontent-length: 357\r\n\r\n<html>"
    for body in (response, response + bytes(600), stream + response, stream[:-512] + response):
        for piece in (7, 4096):
            with pytest.raises(FormatError) as caught:
                reader = VhdReader(len(stream) if announced else None)
                for at in range(0, len(body), piece):
                    list(reader.feed(body[at : at + piece]))
                reader.finish()
            assert "HTTP" in str(caught.value) or piece == 7
            assert caught.value.offset == body.index(b"HTTP")


def test_names_of_the_parent_are_found() -> None:
    head = vhd.parse_head(build(4096, 4096, {}, [], name_behind=b"path"))
    assert head is not None
    assert head.header.locators == (vhd.Locator(b"W2ru", 2048, 4),)
    writer = vhd.VhdWriter(1 << 30, [], parent=(uuid.UUID(int=5), "/a/parent.vhd"))
    head = vhd.parse_head(writer.head())
    assert head is not None
    ((platform, offset, length),) = head.header.locators
    assert platform == b"MacX"
    assert writer.head()[offset : offset + length] == b"file:///a/parent.vhd"


def test_a_parents_name_that_does_not_fit_is_refused() -> None:
    vhd.VhdWriter(512, [], parent=(uuid.UUID(int=5), "\u00e9" * 252))
    for name in ("x" * 257, "\u00e9" * 254):
        with pytest.raises(ValueError, match="name"):
            vhd.VhdWriter(512, [], parent=(uuid.UUID(int=5), name)).head()


def test_a_batmap_that_cannot_be_is_refused() -> None:
    stream = build(4096, 4096, {0: (b"\xff", bytes(4096))}, [0], with_batmap=True)
    at = stream.index(b"tdbatmap") + 8
    for place in (0, 1 << 62):
        wrong = stream[:at] + struct.pack(">Q", place) + stream[at + 8 :]
        with pytest.raises(FormatError, match="batmap"):
            read(wrong, 4096, announced=False)
        read(wrong, 4096)  # whoever knows where the footer is need not look


def test_a_footer_without_its_last_byte_is_taken():
    stream = build(8192, 4096, {1: (b"\xff", b"x" * 4096)}, [1])[:-1]
    _, data = read(stream, 100_000)
    assert data == [(4096, b"x" * 4096)]


@pytest.mark.parametrize(
    ("at", "what", "reason"),
    [
        (16, struct.pack(">Q", 1 << 63), "header is said to be"),
        (16, struct.pack(">Q", 3 << 20), "header is said to be"),
        (60, struct.pack(">I", 2), "disk type 2"),
        (48, struct.pack(">Q", 1 << 60), "a disk of"),
        (48, struct.pack(">Q", 0), "a disk of"),
        (12, struct.pack(">I", 0x20000), "version 2"),
    ],
    ids=["header out of reach", "header far away", "type", "size", "no size", "version"],
)
def test_footers_that_cannot_be(at: int, what: bytes, reason: str):
    stream = bytearray(build(8192, 4096, {}, []))
    stream[at : at + len(what)] = what
    stream[64:68] = bytes(4)
    stream[:512] = checksummed(bytes(stream[:512]), 64)
    with pytest.raises(FormatError, match=reason) as caught:
        read(bytes(stream), 512)
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("at", "what", "reason"),
    [
        (16, struct.pack(">Q", 0), "table is said to be"),
        (16, struct.pack(">Q", 1 << 40), "table is said to be"),
        (16, struct.pack(">Q", 2049), "table is said to be"),
        (28, struct.pack(">I", 1), "1 blocks of 4096"),
        (28, struct.pack(">I", 1 << 31), "blocks of 4096"),
        (32, struct.pack(">I", 0), "blocks of 0"),
        (32, struct.pack(">I", 6000), "blocks of 6000"),
        (32, struct.pack(">I", 1 << 31), "blocks of 2147483648"),
        (24, struct.pack(">I", 0x30000), "header version 3"),
        (0, b"cxsparsf", "no dynamic disk header"),
    ],
    ids="footer far sectors few many empty odd large version cookie".split(),
)
def test_headers_that_cannot_be(at: int, what: bytes, reason: str):
    stream = bytearray(build(8192, 4096, {}, []))
    stream[512 + at : 512 + at + len(what)] = what
    stream[512 + 36 : 512 + 40] = bytes(4)
    stream[512:1536] = checksummed(bytes(stream[512:1536]), 36)
    with pytest.raises(FormatError, match=reason):
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
