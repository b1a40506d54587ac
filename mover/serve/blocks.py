"""Disks of a store in blocks of one slot, read on demand in worker threads; those read last are kept.

All connections share them: clients like to read one disk over several. Blocks in the order of the disk are read one
ahead. Memory is that of the arena.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from mover.store import DiskReader
from protocol.arena import Arena
from protocol.extent import Extent
from protocol.nbd.server import STEP
from protocol.tasks import settled

# Bytes; block n begins at n times this. No part of a read that the server asks for crosses this boundary.
BLOCK = STEP
# Blocks that are read before anybody asks, at a time.
_AHEAD = 4
# Blocks kept beyond those in use, at least.
_KEPT = 12

_Result = TypeVar("_Result")


class Block:
    """`view` holds `extent` of a disk once it is read; outside of `filled` it is zeros, and the view undefined."""

    def __init__(self, extent: Extent, slot: memoryview) -> None:
        self.extent = extent
        self.slot = slot
        self.users = 0
        self.filled: list[Extent] = []
        self.reading: asyncio.Future[list[Extent]] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody reads from it and no thread writes into it."""
        return not self.users and (self.reading is None or self.reading.done())


class Blocks:
    """The blocks of some disks, for at most `users` users each of whom holds at most one block at a time."""

    def __init__(self, disks: Sequence[DiskReader], users: int, executor: Executor) -> None:
        self._disks = disks
        self._executor = executor
        # More than can ever be in use, so that there is always one to be had without waiting.
        self._arena = Arena(users + _AHEAD + _KEPT, BLOCK)
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._ahead = 0

    async def take(self, disk: int, number: int) -> Block:
        """A block of a disk, to be given back with `give_back`. Raises what the store raises."""
        block = self._blocks.get((disk, number)) or await self._begin(disk, number)
        self._blocks.move_to_end((disk, number))
        block.users += 1
        try:
            if (disk, number - 1) in self._blocks:
                await self._read_ahead(disk, number + 1)
            if block.reading is not None:
                block.filled = await settled(block.reading)
                block.reading = None
        except BaseException:
            self.give_back(block)
            raise
        return block

    def give_back(self, block: Block) -> None:
        """The block's view is no longer used."""
        block.users -= 1

    async def call(self, work: Callable[[], _Result]) -> _Result:
        """Do something that reads from the store in a worker thread."""
        return await settled(asyncio.get_running_loop().run_in_executor(self._executor, work))

    async def close(self) -> None:
        """Wait for the threads."""
        reading = [block.reading for block in self._blocks.values() if block.reading is not None]
        if reading:
            await asyncio.wait(reading)

    async def _read_ahead(self, disk: int, number: int) -> None:
        if self._ahead == _AHEAD or (disk, number) in self._blocks or number * BLOCK >= self._disks[disk].size:
            return
        block = await self._begin(disk, number)
        assert block.reading is not None
        self._ahead += 1
        block.reading.add_done_callback(self._is_ahead)

    def _is_ahead(self, reading: asyncio.Future[list[Extent]]) -> None:
        self._ahead -= 1
        if not reading.cancelled():
            reading.exception()  # whoever asks for the block gets it; perhaps nobody does

    async def _begin(self, disk: int, number: int) -> Block:
        """Let a thread read a block."""
        if self._arena.exhausted:
            self._forget(next(key for key, block in self._blocks.items() if block.idle))
        slot = await self._arena.acquire()  # at once: nobody gets in between
        reader = self._disks[disk]
        start = number * BLOCK
        block = Block(Extent(start, min(BLOCK, reader.size - start)), slot)
        block.reading = asyncio.get_running_loop().run_in_executor(self._executor, _read, reader, block)
        block.reading.add_done_callback(lambda reading: self._drop_failed((disk, number), block, reading))
        self._blocks[disk, number] = block
        return block

    def _drop_failed(self, key: tuple[int, int], block: Block, reading: asyncio.Future[list[Extent]]) -> None:
        """A block that could not be read is tried again when it is asked for again."""
        failed = reading.cancelled() or reading.exception() is not None
        if failed and self._blocks.get(key) is block:
            self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        self._arena.release(self._blocks.pop(key).slot)


def _read(reader: DiskReader, block: Block) -> list[Extent]:
    """Fill a block from the store; returns what of it is no hole."""
    filled = [
        Extent(max(found.offset, block.extent.offset), min(found.end, block.extent.end) - found.offset)
        for found in reader.extents(block.extent)
    ]
    if filled:
        # At once, holes between them included: each call is at least one read of the store.
        start, end = filled[0].offset, filled[-1].end
        reader.read_into(start, block.slot[start - block.extent.offset : end - block.extent.offset])
    return filled
