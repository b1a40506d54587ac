"""Streams of simulated disks: what goes out comes in again, deltas land on their base, and nothing else is accepted."""

import asyncio
import os
import random
import struct
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mover.simulator.storage import Disks, StorageError
from mover.simulator.vdi_stream import (
    Reader,
    StreamError,
    export_raw,
    export_vhd,
    import_chunked,
    import_raw,
    import_vhd,
)
from protocol import vhd

KiB, MiB = 1 << 10, 1 << 20
BLOCK = vhd.BLOCK_SIZE


class Memory:
    """Takes a stream into memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data

    async def sendfile(self, fd: int, offset: int, length: int) -> None:
        data = os.pread(fd, length, offset)
        assert len(data) == length
        self.data += data


def vhd_of(disks: Disks, uuid: str, base: str | None = None) -> bytes:
    memory = Memory()
    asyncio.run(export_vhd(disks, uuid, base, memory))
    return bytes(memory.data)


def take(importing: Callable[..., Coroutine[Any, Any, None]], disks: Disks, uuid: str, body: bytes, *more: int) -> None:
    """Run an import on a body that arrives in one piece."""

    async def go() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(body)
        reader.feed_eof()
        typed: Reader = reader
        await importing(disks, uuid, typed, *more)

    asyncio.run(go())


writes = st.lists(st.tuples(st.integers(0, 10 * MiB - 1), st.integers(1, 200 * KiB), st.integers(0, 255)), max_size=6)


def write(disks: Disks, uuid: str, what: list[tuple[int, int, int]]) -> None:
    for offset, length, fill in what:
        disks.write(uuid, offset, bytes([fill]) * min(length, 10 * MiB - offset))


@settings(max_examples=25, deadline=None)
@given(writes, writes, writes, st.booleans())
def test_a_full_and_its_deltas_give_every_state(first, second, third, coalesce):
    with tempfile.TemporaryDirectory() as folder:
        disks = Disks(Path(folder), coalesce=coalesce)
        disks.create("d", 10 * MiB)
        write(disks, "d", first)
        disks.snapshot("d", "s1")
        write(disks, "d", second)
        disks.snapshot("d", "s2")
        write(disks, "d", third)
        disks.create("copy", 10 * MiB)
        base = None
        for name in ("s1", "s2", "d"):
            body = vhd_of(disks, name, base)
            head = vhd.parse_head(body)
            assert head is not None
            present = sum(at != vhd.ABSENT for at in head.bat)
            assert len(body) == vhd.stream_length(10 * MiB, present)
            assert head.footer.creator == b"caml"
            assert head.footer.kind == (vhd.DYNAMIC if base is None else vhd.DIFFERENCING)
            if base is None:
                assert head.allocated() == _blocks(disks.extents(name))
            take(import_vhd, disks, "copy", body, len(body))
            assert disks.digest("copy") == disks.digest(name)
            base = name
        # from any state to any other, also back in time, as after a revert
        body = vhd_of(disks, "s1", "d")
        take(import_vhd, disks, "copy", body, len(body))
        assert disks.digest("copy") == disks.digest("s1")
        disks.close()


def _blocks(extents):
    numbers = sorted({n for e in extents for n in range(e.offset // BLOCK, -(-e.end // BLOCK))})
    merged: list[list[int]] = []
    for n in numbers:
        if merged and sum(merged[-1]) == n * BLOCK:
            merged[-1][1] += BLOCK
        else:
            merged.append([n * BLOCK, BLOCK])
    return [tuple(pair) for pair in merged]


@settings(max_examples=10, deadline=None)
@given(writes, st.integers(0, 5 * KiB))
def test_raw_goes_out_and_in(what, cut):
    with tempfile.TemporaryDirectory() as folder:
        disks = Disks(Path(folder))
        disks.create("d", 10 * MiB)
        write(disks, "d", what)
        memory = Memory()
        asyncio.run(export_raw(disks, "d", memory))
        assert memory.data == disks.read("d", 0, 10 * MiB)
        disks.create("copy", 10 * MiB)
        disks.write("copy", 0, b"\xff" * 10 * MiB)
        take(import_raw, disks, "copy", bytes(memory.data), 10 * MiB - cut)
        assert disks.read("copy", 0, 10 * MiB) == memory.data[: 10 * MiB - cut] + b"\xff" * cut
        disks.close()


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    disks = Disks(tmp_path)
    disks.create("d", 4 * MiB)
    return disks


def test_frames_land_where_they_say(disks: Disks):
    rng = random.Random(1)
    pieces = [(3 * MiB, rng.randbytes(MiB)), (5, rng.randbytes(2 * MiB)), (77, b""), (0, b"zero")]
    body = b"".join(struct.pack("<QI", offset, len(data)) + data for offset, data in pieces) + bytes(12)
    expected = bytearray(4 * MiB)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    take(import_chunked, disks, "d", body + b"anything after the end is not read")
    assert disks.read("d", 0, 4 * MiB) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(11),
        struct.pack("<QI", 0, 10) + b"short",
        struct.pack("<QI", 4 * MiB - 1, 2) + b"xx" + bytes(12),
        struct.pack("<QI", 1 << 63, 1) + b"x" + bytes(12),
        struct.pack("<QI", 0, 1) + b"x",
    ],
)
def test_bad_frames_are_an_io_error(disks: Disks, body: bytes):
    with pytest.raises(StreamError) as caught:
        take(import_chunked, disks, "d", body)
    assert caught.value.code == "VDI_IO_ERROR"


def test_an_exact_length_is_needed(disks: Disks):
    disks.write("d", 0, b"x")
    body = vhd_of(disks, "d")
    disks.create("copy", 4 * MiB)
    for wrong in (len(body) - 1024, len(body) + 512, len(body) + 4096, 1 << 50, 0):
        with pytest.raises(StreamError) as caught:
            take(import_vhd, disks, "copy", body, wrong)
        assert caught.value.code == "VDI_IO_ERROR"


@pytest.mark.parametrize(("sent", "announced"), [(3 * MiB, 4 * MiB), (5 * MiB, 5 * MiB), (0, 1)])
def test_a_raw_body_has_to_be_there_and_to_fit(disks: Disks, sent: int, announced: int):
    with pytest.raises(StreamError):
        take(import_raw, disks, "d", bytes(sent), announced)


def test_a_vhd_that_reaches_past_the_disk_fails_late(disks: Disks):
    disks.write("d", 0, b"start")
    disks.write("d", 4 * MiB - 1, b"x")
    body = vhd_of(disks, "d")
    disks.create("small", 2 * MiB)
    with pytest.raises(StreamError):
        take(import_vhd, disks, "small", body, len(body))
    assert disks.read("small", 0, 5) == b"start"


def test_nothing_is_zeroed(disks: Disks):
    disks.create("target", 4 * MiB)
    disks.write("target", 0, b"\xff" * 4 * MiB)
    disks.write("d", 0, b"x")
    body = vhd_of(disks, "d")
    take(import_vhd, disks, "target", body, len(body))
    assert disks.read("target", 0, 4 * MiB) == b"x" + bytes(2 * MiB - 1) + b"\xff" * 2 * MiB


def test_what_is_too_large_for_a_vhd_is_refused(disks: Disks):
    disks.create("large", (2040 << 30) + 512)
    with pytest.raises(StreamError) as caught:
        vhd_of(disks, "large")
    assert caught.value.code == "VDI_TOO_LARGE"
    disks.create("just", 2040 << 30)
    assert len(vhd_of(disks, "just")) == vhd.stream_length(2040 << 30, 0)


def test_a_base_without_data_cannot_be_a_base(disks: Disks):
    disks.enable_cbt("d")
    disks.snapshot("d", "s")
    disks.data_destroy("s")
    with pytest.raises(StorageError) as caught:
        vhd_of(disks, "d", "s")
    assert caught.value.code == 46


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4000), st.integers(0, 3000), st.integers(0, 5000))
def test_rubbish_is_an_io_error(rubbish, at, length):
    with tempfile.TemporaryDirectory() as folder:
        disks = Disks(Path(folder))
        disks.create("d", 2 * MiB)
        body = bytearray(vhd_of(disks, "d"))
        body[at : at + len(rubbish)] = rubbish
        try:
            take(import_vhd, disks, "d", bytes(body), length)
        except StreamError as error:
            assert error.code == "VDI_IO_ERROR"
        disks.close()
