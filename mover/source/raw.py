"""A whole disk as a raw stream over HTTP: needs no NBD, reads everything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mover.pipeline.pace import Pace
from mover.source import Take
from protocol.arena import Arena
from protocol.block import Block
from protocol.extent import Extent
from protocol.tasks import task_group
from protocol.xapi import Transfers

# Blocks of one stream that may be sealed at once: enough to keep the worker threads busy while the next one is read.
_IN_FLIGHT = 4


class RawSource:
    """Reads the raw export of the VDI `vdi` (a ref) of `size` bytes. It can only deliver the whole disk."""

    def __init__(self, transfers: Transfers, vdi: str, size: int, pace: Pace) -> None:
        self._transfers = transfers
        self._vdi = vdi
        self._size = size
        self._pace = pace

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`."""
        if list(extents) != [Extent(0, self._size)]:
            raise ValueError("a raw stream delivers the whole disk")
        room = asyncio.Semaphore(_IN_FLIGHT)

        async def seal(block: Extent, slot: memoryview) -> None:
            try:
                await take(Block(block.offset, slot[: block.length], [block]))
            finally:
                arena.release(slot)
                room.release()

        async with self._transfers.export_vdi(self._vdi, format="raw") as stream, task_group() as group:
            for offset in range(0, self._size, arena.slot_size):
                block = Extent(offset, min(arena.slot_size, self._size - offset))
                await room.acquire()
                slot = await arena.acquire()
                try:
                    await self._pace.spend(block.length)
                    await stream.readinto(slot[: block.length])
                except BaseException:
                    arena.release(slot)
                    raise
                group.create_task(seal(block, slot))
            await stream.finish()
        return self._size
