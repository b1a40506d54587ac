"""Disks go by: however large they are, readers and writers hold no more of them than the piece that is fed."""

import tracemalloc
from collections.abc import Iterator

import zstandard

from protocol.vhd import BLOCK_SIZE, VhdWriter, stream_length
from protocol.vhd_stream import VhdReader
from protocol.xva.compression import Unpacker
from protocol.xva.reader import BLOCK, Data, XvaReader
from protocol.xva.writer import XvaDisk, XvaWriter
from tests.xva_fixtures import ova_xml

MiB = 1 << 20
PIECE = bytes(256 << 10)
SIZE = 256 * MiB


def pieces_of_xva() -> Iterator[bytes]:
    writer = XvaWriter(ova_xml({"Ref:1": SIZE}), [XvaDisk("Ref:1", SIZE, range(SIZE // BLOCK))])
    digest = writer.digest(bytes(BLOCK))
    yield writer.head()
    for number, _, length in writer.disk_blocks(writer.disks[0]):
        yield writer.block_head("Ref:1", number, length)
        for _ in range(0, length, len(PIECE)):
            yield PIECE
        yield writer.block_tail("Ref:1", number, digest)
    yield writer.trailer()


def pieces_of_vhd() -> Iterator[bytes]:
    writer = VhdWriter(SIZE, range(SIZE // BLOCK_SIZE))
    yield writer.head()
    for _ in range(SIZE // BLOCK_SIZE):
        yield writer.block_prefix()
        for _ in range(0, BLOCK_SIZE, len(PIECE)):
            yield PIECE
    yield writer.trailer()


def test_an_xva_is_never_held() -> None:
    tracemalloc.start()
    try:
        reader = XvaReader()
        seen = 0
        for piece in pieces_of_xva():
            for event in reader.feed(piece):
                if isinstance(event, Data):
                    seen += len(event.view)
        reader.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == SIZE
    assert peak < 3 * MiB


def test_a_compressed_xva_is_never_held() -> None:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    packed = [packer.compress(piece) for piece in pieces_of_xva()] + [packer.flush()]
    tracemalloc.start()
    try:
        unpacker, reader = Unpacker(), XvaReader()
        seen = 0
        for piece in packed:
            for view in unpacker.feed(piece):
                for event in reader.feed(view):
                    if isinstance(event, Data):
                        seen += len(event.view)
        unpacker.finish()
        reader.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == SIZE
    assert peak < 3 * MiB


def test_a_vhd_is_never_held() -> None:
    tracemalloc.start()
    try:
        reader = VhdReader()
        for piece in pieces_of_vhd():
            for _ in reader.feed(piece):
                pass
        reader.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MiB


def test_the_length_of_a_large_disk_is_known_without_much_memory() -> None:
    size = 256 << 30
    blocks = size // BLOCK_SIZE
    tracemalloc.start()
    try:
        xva = XvaWriter(b"<value/>", [XvaDisk("Ref:1", size, range(0, size // BLOCK, 2))])
        vhd = VhdWriter(size, range(blocks))
        head = vhd.head()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert xva.length == 1024 + 1024 + (blocks + 1) * (BLOCK + 1536)  # every other one, and the last
    assert stream_length(size, blocks) == len(head) + blocks * (512 + BLOCK_SIZE) + 512
    assert peak < 12 * MiB
