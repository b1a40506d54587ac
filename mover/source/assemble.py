"""A stream in ascending order into slots: while one fills, those before it are sealed by tasks of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mover.source import Take
from protocol.arena import Arena
from protocol.block import Block
from protocol.extent import Extent
from protocol.tasks import in_thread, task_group

# Slots of one stream that may be sealed at once: enough to keep the worker threads busy while the next one fills.
_IN_FLIGHT = 4

# Called in a worker thread before a slot is sealed. `Fill` writes what the stream left out of it.
Fill = Callable[[int, memoryview], None]
Check = Callable[[memoryview], None]


def zeros(offset: int, view: memoryview) -> None:
    """What is left out is zeros."""
    view[:] = bytes(len(view))


class _Region:
    """The part of the disk from `start` on that a slot holds. `filled` bytes of it are there, or known to be absent."""

    def __init__(self, start: int, slot: memoryview, length: int) -> None:
        self.start = start
        self.slot = slot
        self.length = length
        self.filled = 0
        self.absent: list[Extent] = []
        self.checks: list[tuple[Extent, Check]] = []

    def skip_to(self, filled: int) -> None:
        if filled > self.filled:
            self.absent.append(Extent(self.start + self.filled, filled - self.filled))
            self.filled = filled


class Assembler:
    """Takes the bytes of one disk of `size` bytes, in ascending order, and hands on whole slots.

    Slots begin at multiples of their size, the last one ends with the disk. A slot of which the stream holds nothing is
    left out; what it leaves out of others, `fill` writes. Use `assembling`.
    """

    def __init__(self, size: int, arena: Arena, take: Take, group: asyncio.TaskGroup, fill: Fill) -> None:
        self._size = size
        self._arena = arena
        self._take = take
        self._group = group
        self._fill = fill
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self._region: _Region | None = None

    async def add(self, offset: int, data: memoryview) -> None:
        """The disk's bytes from `offset` on; nothing that lies past its end is kept."""
        data = data[: max(self._size - offset, 0)]
        while data:
            region = await self._region_at(offset)
            at = offset - region.start
            region.skip_to(at)
            part = data[: region.length - at]
            region.slot[at : at + len(part)] = part
            region.filled = at + len(part)
            data = data[len(part) :]
            offset += len(part)

    async def place(self, offset: int, length: int) -> memoryview:
        """Where the disk's bytes from `offset` on belong: at most `length` of them. Say with `placed` what is there.

        It is empty past the disk's end.
        """
        if offset >= self._size:
            return memoryview(b"")
        region = await self._region_at(offset)
        at = offset - region.start
        return region.slot[at : min(at + length, region.length)]

    def placed(self, extent: Extent) -> None:
        """These bytes are where `place` said they belong."""
        region = self._region
        assert region is not None
        region.skip_to(extent.offset - region.start)
        region.filled = extent.end - region.start

    async def begin(self, offset: int) -> None:
        """Have the slot delivered that holds the byte `offset`, whether the stream holds anything of it or not."""
        await self._region_at(offset)

    def check(self, extent: Extent, check: Check) -> None:
        """Have `check` look at bytes that were added last, in a worker thread, before anything is made of them.

        Raises `ValueError` if they do not lie in one slot.
        """
        region = self._region
        if region is None or extent.offset < region.start or extent.end > region.start + region.length:
            raise ValueError(f"bytes {extent.offset} to {extent.end} do not lie in one slot")
        region.checks.append((extent, check))

    async def _region_at(self, offset: int) -> _Region:
        region = self._region
        if region is not None and region.start <= offset < region.start + region.length:
            return region
        await self.flush()
        start = offset - offset % self._arena.slot_size
        slot = await self._arena.acquire()
        self._region = _Region(start, slot, min(self._arena.slot_size, self._size - start))
        return self._region

    async def flush(self) -> None:
        """Let what is there be sealed; whoever adds to the same slot later adds too late."""
        if self._region is None:
            return
        await self._room.acquire()
        region, self._region = self._region, None
        self._group.create_task(self._seal(region))

    def drop(self) -> None:
        """Give up what is not sealed yet."""
        if self._region is not None:
            self._arena.release(self._region.slot)
            self._region = None

    async def _seal(self, region: _Region) -> None:
        try:
            region.skip_to(region.length)
            await in_thread(self._take.executor, self._complete, region)
        finally:
            self._arena.release(region.slot)
            self._room.release()

    def _complete(self, region: _Region) -> None:
        for extent, check in region.checks:
            check(_part(region, extent))
        for extent in region.absent:
            self._fill(extent.offset, _part(region, extent))
        whole = Extent(region.start, region.length)
        self._take.here([Block(whole.offset, _part(region, whole), [whole])])


def _part(region: _Region, extent: Extent) -> memoryview:
    at = extent.offset - region.start
    return region.slot[at : at + extent.length]


@asynccontextmanager
async def assembling(size: int, arena: Arena, take: Take, fill: Fill = zeros) -> AsyncIterator[Assembler]:
    """Assemble one disk; at the end of the block all of it is sealed. Raises what `take`, `fill` and checks raise."""
    async with task_group() as group:
        assembler = Assembler(size, arena, take, group, fill)
        try:
            yield assembler
            await assembler.flush()
        finally:
            assembler.drop()
