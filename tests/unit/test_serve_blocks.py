"""Blocks of served disks: shared, kept, read ahead, and never more of them than there is memory for."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Event, Lock

import pytest

from mover.errors import StoreDamagedError
from mover.serve.blocks import BLOCK, Blocks
from protocol.extent import Extent

SIZE = 100 * BLOCK + 512


class Disk:
    """A disk each block of which begins with its number; reads of `held` wait until it is set, those of `bad` fail."""

    def __init__(self) -> None:
        self.size = SIZE
        self.reads: list[int] = []
        self.began = {number: Event() for number in range(101)}
        self.held: dict[int, Event] = {}
        self.bad: set[int] = set()
        self._lock = Lock()

    def extents(self, within: Extent) -> Iterator[Extent]:
        if within.offset // BLOCK != 7:  # a block without data
            yield within

    def read_into(self, offset: int, view: memoryview) -> None:
        number = offset // BLOCK
        with self._lock:
            self.reads.append(number)
        self.began[number].set()
        if number in self.held:
            assert self.held[number].wait(30)
        if number in self.bad:
            raise StoreDamagedError("a pack is damaged")
        view[:4] = number.to_bytes(4, "big")


@asynccontextmanager
async def blocks(disk: Disk, users: int = 2) -> AsyncIterator[Blocks]:
    with ThreadPoolExecutor(4) as executor:
        opened = Blocks([disk], users, executor)  # type: ignore[list-item]
        try:
            yield opened
        finally:
            for event in disk.held.values():
                event.set()
            await opened.close()


async def number_in(opened: Blocks, number: int) -> int:
    block = await opened.take(0, number)
    try:
        return int.from_bytes(block.slot[:4], "big")
    finally:
        opened.give_back(block)


async def waited(event: Event) -> bool:
    return await asyncio.get_running_loop().run_in_executor(None, event.wait, 30)


async def test_blocks_in_order_are_read_ahead_and_others_are_not() -> None:
    disk = Disk()
    async with blocks(disk) as opened:
        assert [await number_in(opened, number) for number in (50, 20, 21)] == [50, 20, 21]
        assert await waited(disk.began[22])
        assert await number_in(opened, 22) == 22
        assert await waited(disk.began[23])
    assert disk.reads == [50, 20, 21, 22, 23]


async def test_nothing_is_read_ahead_past_the_end() -> None:
    disk = Disk()
    async with blocks(disk) as opened:
        assert await number_in(opened, 99) == 99
        last = await opened.take(0, 100)
        assert last.filled == [Extent(100 * BLOCK, 512)]
    assert disk.reads == [99, 100]


async def test_what_was_read_last_is_kept_and_what_was_long_ago_is_read_again() -> None:
    disk = Disk()
    async with blocks(disk) as opened:
        for number in (3, 5, 3, 5, 3):
            assert await number_in(opened, number) == number
        assert disk.reads == [3, 5]
        for number in range(10, 100, 2):
            await number_in(opened, number)
        assert await number_in(opened, 3) == 3
    assert disk.reads.count(3) == 2


async def test_two_that_want_the_same_block_share_one_read() -> None:
    disk = Disk()
    disk.held[4] = Event()
    async with blocks(disk) as opened, asyncio.TaskGroup() as group:
        found = [group.create_task(number_in(opened, 4)) for _ in range(2)]
        assert await waited(disk.began[4])
        disk.held[4].set()
        assert [await task for task in found] == [4, 4]
    assert disk.reads == [4]


async def test_who_gives_up_does_not_take_the_block_from_others() -> None:
    """Nor does a thread ever write into a block that is used for something else by then."""
    disk = Disk()
    disk.held[4] = Event()
    async with blocks(disk, users=30) as opened, asyncio.TaskGroup() as group:
        hasty, patient = (group.create_task(number_in(opened, 4)) for _ in range(2))
        assert await waited(disk.began[4])
        hasty.cancel()
        others = list(range(10, 100, 2))
        assert [await number_in(opened, number) for number in others] == others
        disk.held[4].set()
        assert await patient == 4
    assert hasty.cancelled()


async def test_a_block_without_data_is_not_read() -> None:
    disk = Disk()
    async with blocks(disk) as opened:
        block = await opened.take(0, 7)
        assert block.filled == []
    assert disk.reads == []


async def test_a_failed_read_is_everybodys_and_is_tried_again() -> None:
    disk = Disk()
    disk.bad = {4}
    async with blocks(disk) as opened:
        for _ in range(2):
            with pytest.raises(StoreDamagedError):
                await number_in(opened, 4)
        disk.bad = set()
        assert await number_in(opened, 4) == 4
        assert disk.reads == [4, 4, 4]


async def test_a_failure_ahead_concerns_only_who_asks_for_it() -> None:
    disk = Disk()
    disk.bad = {6}
    async with blocks(disk) as opened:
        assert [await number_in(opened, number) for number in (4, 5)] == [4, 5]
        assert await waited(disk.began[6])
        assert await number_in(opened, 4) == 4
        with pytest.raises(StoreDamagedError):
            await number_in(opened, 6)


async def test_all_users_at_once_get_their_blocks() -> None:
    disk = Disk()
    async with blocks(disk, users=16) as opened, asyncio.timeout(60):
        for round in range(3):
            held = [await opened.take(0, (number * 6 + 8 + round) % 100) for number in range(16)]
            assert [int.from_bytes(block.slot[:4], "big") for block in held] == [
                (number * 6 + 8 + round) % 100 for number in range(16)
            ]
            for block in held:
                opened.give_back(block)
