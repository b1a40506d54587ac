"""A disk of a restore point: what another store is filled from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

from mover.source import Take
from mover.store import DiskReader
from protocol.arena import Arena
from protocol.block import Block
from protocol.extent import Extent, split
from protocol.tasks import in_thread, task_group

_CARRIERS = 4


class StoredSource:
    """Reads the disk behind `reader`, every chunk compared with its id."""

    def __init__(self, reader: DiskReader, executor: Executor) -> None:
        self._reader = reader
        self._executor = executor

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`. Raises `StoreDamagedError`."""
        blocks = split(extents, arena.slot_size)
        async with task_group() as group:
            carriers = [group.create_task(self._carry(blocks, arena, take)) for _ in range(_CARRIERS)]
        return sum(carrier.result() for carrier in carriers)

    async def _carry(self, blocks: Iterator[Extent], arena: Arena, take: Take) -> int:
        carried = 0
        for block in blocks:
            async with arena.slot() as slot:
                view = slot[: block.length]
                await in_thread(self._executor, self._reader.read_into, block.offset, view)
                await take(Block(block.offset, view, [block]))
            carried += block.length
        return carried
