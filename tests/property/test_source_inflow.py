"""Streams of VHD and XVA as sources: whatever of them is received in place or copied, the disk is the same."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mover.pipeline.pace import Pace
from mover.pipeline.take import Take
from mover.source.inflow import Inflow
from mover.source.vhd import open_vhd
from mover.source.xva import Target, open_xva
from protocol.arena import Arena
from protocol.block import Block
from protocol.errors import FormatError
from protocol.extent import Extent, align
from protocol.xapi import Transfers
from protocol.xapi.export import ExportStream
from tests.vhd_fixtures import build
from tests.xva_fixtures import archive, checked, ova_xml

MiB = 1 << 20
SECTOR = 512
BLOCK = 2 * MiB


class Wire:
    """Gives out a stream as a socket would: now some bytes, now many. `copied` went into no buffer of the reader."""

    def __init__(self, stream: bytes, rng: random.Random) -> None:
        self.received = 0
        self.copied = 0
        self._stream = stream
        self._rng = rng

    async def read_view(self, most: int = MiB) -> memoryview:
        some = self._stream[self.received :][: min(most, self._rng.choice([1, 700, 5000, MiB]))]
        self.received += len(some)
        self.copied += len(some)
        return memoryview(some)

    async def readinto(self, view: memoryview) -> int:
        some = self._stream[self.received :][: len(view)]
        view[: len(some)] = some
        self.received += len(some)
        return len(some)

    async def finish(self) -> None:
        assert self.received == len(self._stream)


class Downloads:
    """A pool that has this one stream."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @asynccontextmanager
    async def export_vdi(self, *_: object, **__: object) -> AsyncIterator[Wire]:
        yield self._wire

    export_vm = export_vdi


class Disk:
    """Takes blocks, each once."""

    def __init__(self, size: int, executor: ThreadPoolExecutor) -> None:
        self.content = bytearray(b"\xee" * size)
        self.extents: list[Extent] = []
        self.take = Take(executor, self._here)

    def _here(self, blocks: Sequence[Block]) -> None:
        for offset, view, wanted in blocks:
            assert list(wanted) == [Extent(offset, len(view))]
            self.content[offset : offset + len(view)] = view
            self.extents.append(wanted[0])

    async def skip(self, extent: Extent) -> None:
        self.content[extent.offset : extent.end] = bytes(extent.length)


def base(offset: int, view: memoryview) -> None:
    """What is in the base where the stream leaves something out."""
    view[:] = b"\xbb" * len(view)


def bits(rng: random.Random) -> bytes:
    """A bitmap of a block: all, none, a stretch, or any."""
    count = BLOCK // SECTOR
    first, last = sorted(rng.sample(range(count + 1), 2))
    mask = rng.choice([(1 << count) - 1, 0, (1 << last) - (1 << first), rng.getrandbits(count)])
    return mask.to_bytes(count // 8, "big")


@pytest.mark.parametrize("slot", [2 * MiB, 4 * MiB])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5 * BLOCK // SECTOR), st.sets(st.integers(0, 4)), st.booleans(), st.integers(0, 2**32))
async def test_vhd(slot: int, sectors: int, chosen: set[int], batmap: bool, seed: int) -> None:
    rng = random.Random(seed)
    size = sectors * SECTOR
    numbers = sorted(number for number in chosen if number * BLOCK < size)
    contents = {number: (bits(rng), rng.randbytes(BLOCK)) for number in numbers}
    expected = bytearray(b"\xbb" * 5 * BLOCK)
    for number, (bitmap, content) in contents.items():
        for sector in range(BLOCK // SECTOR):
            if bitmap[sector >> 3] >> (7 - (sector & 7)) & 1:
                at = number * BLOCK + sector * SECTOR
                expected[at : at + SECTOR] = content[sector * SECTOR :][:SECTOR]
    wire = Wire(build(size, BLOCK, contents, numbers, with_batmap=batmap), rng)
    held = align([Extent(number * BLOCK, BLOCK) for number in numbers], slot, size)
    with ThreadPoolExecutor(2) as executor:
        disk = Disk(size, executor)
        async with open_vhd(cast(Transfers, Downloads(wire)), "vdi", "base", Pace(0), base) as source:
            assert await source.deliver(held, Arena(6, slot), disk.take) == wire.received
    for extent in held:
        assert disk.content[extent.offset : extent.end] == expected[extent.offset : extent.end]
    delivered = sum(extent.length for extent in disk.extents)
    assert delivered == sum(extent.length for extent in held)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9 * MiB // 1000).map(lambda count: count * 1000), min_size=1, max_size=3),
    st.integers(0, 2**32),
)
async def test_xva(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    parts: list[bytes] = []
    contents: dict[str, bytes] = {}
    for place, size in enumerate(sizes):
        content = bytearray(size)
        for number, offset in enumerate(range(0, size, MiB)):
            length = min(MiB, size - offset)
            if rng.random() < 0.6:
                content[offset : offset + length] = rng.randbytes(length)
            if any(content[offset : offset + length]) or not offset or offset + length == size:
                parts.append(checked(f"Ref:{place}/{number:08d}", bytes(content[offset : offset + length])))
        contents[f"Ref:{place}"] = bytes(content)
    lengths = {ref: len(content) for ref, content in contents.items()}
    wire = Wire(archive(ova_xml(lengths), *parts), rng)

    async def nothing() -> None:
        pass

    with ThreadPoolExecutor(2) as executor:
        disks = {ref: Disk(length, executor) for ref, length in lengths.items() if ref != "Ref:1"}
        async with open_xva(cast(Transfers, Downloads(wire)), "vm", "none", executor, Pace(0)) as source:
            targets = {ref: Target(lengths[ref], disk.take, disk.skip, nothing, nothing) for ref, disk in disks.items()}
            await source.deliver(targets, Arena(6))
    assert {ref: bytes(disk.content) for ref, disk in disks.items()} == {ref: contents[ref] for ref in disks}


async def test_content_is_received_where_it_belongs() -> None:
    """Of a large disk, only what stands between blocks was ever anywhere else."""
    content = random.Random(1).randbytes(16 * MiB)
    blocks = [checked(f"Ref:0/{number:08d}", content[number * MiB :][:MiB]) for number in range(16)]
    wire = Wire(archive(ova_xml({"Ref:0": len(content)}), *blocks), Steady())

    async def nothing() -> None:
        pass

    with ThreadPoolExecutor(2) as executor:
        disk = Disk(len(content), executor)
        async with open_xva(cast(Transfers, Downloads(wire)), "vm", "none", executor, Pace(0)) as source:
            await source.deliver({"Ref:0": Target(len(content), disk.take, disk.skip, nothing, nothing)}, Arena(6))
    assert disk.content == content
    # The first MiB holds ova.xml and the first block's beginning.
    assert wire.copied < 2 * MiB + 16 * 2048


class Steady(random.Random):
    """As much as was asked for."""

    def choice(self, seq: Any) -> Any:
        return max(seq)


async def test_a_vhd_whose_blocks_are_not_in_ascending_order_is_refused() -> None:
    rng = random.Random(1)
    contents = {number: (b"\xff" * (BLOCK // SECTOR // 8), rng.randbytes(BLOCK)) for number in range(3)}
    wire = Wire(build(3 * BLOCK, BLOCK, contents, [1, 0, 2]), rng)
    with ThreadPoolExecutor(2) as executor:
        disk = Disk(3 * BLOCK, executor)
        async with open_vhd(cast(Transfers, Downloads(wire)), "vdi", "base", Pace(0), base) as source:
            with pytest.raises(FormatError, match="not in ascending order"):
                await source.deliver([Extent(0, 3 * BLOCK)], Arena(6), disk.take)


async def test_what_is_short_or_has_no_place_is_copied() -> None:
    wire = Wire(bytes(1000), Steady())
    inflow = Inflow(cast(ExportStream, wire))
    asked: list[tuple[int, int]] = []

    async def nowhere(offset: int, length: int) -> memoryview:
        asked.append((offset, length))
        return memoryview(b"")

    inflow.place = nowhere
    assert len(await inflow.next((0, 100))) == 1000 and not inflow.placed and not asked
    assert not await inflow.next((5, MiB)) and not inflow.placed and asked == [(5, MiB)]
