"""Packed archives: whatever the cut, the same bytes; no step makes much, nothing cut off or added goes unnoticed."""

import gzip
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from protocol.errors import FormatError
from protocol.xva.compression import MAX_PIECE, Unpacker, detect

RNG = random.Random(1)
CONTENT = RNG.randbytes(200_000) + bytes(700_000) + b"text and " * 30_000
MiB = 1 << 20


def zstd_stream(data: bytes) -> bytes:
    """As a pipe makes it: the size is not known when the frame begins; with a checksum."""
    packer = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip, two members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "zstd": zstd_stream,
    "zstd, size known": zstandard.compress,
    "zstd, one segment": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    "zstd, three frames": lambda data: b"".join(map(zstd_stream, (data[:1], b"", data[1:]))),
    "zstd, something to skip": lambda data: zstd_stream(data) + b"\x53\x2a\x4d\x18\x05\0\0\0hello" + zstd_stream(b""),
}


def unpack(data: bytes, piece: int = 1 << 16) -> bytes:
    unpacker = Unpacker()
    made = []
    for start in range(0, len(data), piece):
        for view in unpacker.feed(data[start : start + piece]):
            assert 0 < len(view) <= MAX_PIECE
            made.append(bytes(view))
    unpacker.finish()
    return b"".join(made)


@pytest.mark.parametrize("piece", [1, 3, 1000, 1 << 24])
@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_the_cut_makes_no_difference(packer: Callable[[bytes], bytes], piece: int) -> None:
    content = CONTENT[150_000:950_000] if piece < 1000 else CONTENT
    assert unpack(packer(content), piece) == content


def test_what_is_not_compressed_goes_by_as_it_is() -> None:
    assert unpack(CONTENT) == CONTENT
    assert unpack(CONTENT, 1) == CONTENT
    views = [view for view in Unpacker().feed(CONTENT) if len(view) > 4]
    assert all(view.obj is CONTENT for view in views)


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_a_stream_that_is_cut_off_is_refused(packer: Callable[[bytes], bytes]) -> None:
    stream = packer(b"some content" * 1000)
    ends = {len(packer(b"some content"))}  # only where the cut makes a whole stream of its own
    for length in range(len(stream)):
        try:
            made = unpack(stream[:length])
        except FormatError:
            continue
        assert length not in ends
        assert made in (b"", b"s", (b"some content" * 1000)[:1000], b"some content" * 1000)


@pytest.mark.parametrize("surplus", [b"\0", b"HTTP/1.1 500 Internal Error\r\n", bytes(600), b"\x28\xb5", b"\x1f\x8b"])
@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_what_follows_the_end_is_refused(packer: Callable[[bytes], bytes], surplus: bytes) -> None:
    for piece in (1, 1 << 20):
        with pytest.raises(FormatError):
            unpack(packer(b"content") + surplus, piece)


@pytest.mark.parametrize("packer", [gzip.compress, zstd_stream], ids=["gzip", "zstd"])
def test_damage_is_found(packer: Callable[[bytes], bytes]) -> None:
    content = RNG.randbytes(3000) + bytes(3000)
    stream = packer(content)
    for _ in range(300):
        damaged = bytearray(stream)
        damaged[RNG.randrange(len(stream))] ^= 1 << RNG.randrange(8)
        try:
            made = unpack(bytes(damaged))
        except FormatError as error:
            assert error.offset is not None
        else:
            # The magic was hit, so it is not compressed any more; or a field that says nothing about the content.
            assert made in (bytes(damaged), content)


def gzip_bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(MiB)) for _ in range(64)) + packer.flush()


def zstd_bomb() -> bytes:
    """64 MiB in blocks of one byte each: 4 bytes stand for 128 KiB."""
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\0\x58" + block * 511 + (131072 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"


@pytest.mark.parametrize("bomb", [gzip_bomb, zstd_bomb])
def test_a_bomb_comes_in_small_pieces(bomb: Callable[[], bytes]) -> None:
    stream = bomb()
    assert len(stream) < 100_000
    unpacker = Unpacker()
    made = 0
    for view in unpacker.feed(stream):
        assert len(view) <= MAX_PIECE
        made += len(view)
    unpacker.finish()
    assert made == 64 * MiB


def test_a_frame_that_wants_much_memory_is_refused() -> None:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    stream = packer.compress(b"content") + packer.flush()
    with pytest.raises(FormatError, match="memory"):
        unpack(stream)


def test_a_block_larger_than_blocks_are_is_refused() -> None:
    with pytest.raises(FormatError, match="a block of 2097151 bytes"):
        unpack(b"\x28\xb5\x2f\xfd\0\x58" + (0x1FFFFF << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0")


def test_magic_tells() -> None:
    assert detect(gzip.compress(b"")) == "gzip"
    assert detect(zstd_stream(b"")) == "zstd"
    assert detect(b"ova.xml") == "none"
    assert detect(b"") == "none"


def test_a_stream_without_anything_is_cut_off() -> None:
    with pytest.raises(FormatError):
        unpack(b"")
    with pytest.raises(FormatError):
        unpack(b"ov")
