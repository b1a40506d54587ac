"""In which parts a VDI of a pool differs from a disk of a restore point."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from mover.pipeline.pace import Pace
from mover.source import Source, Take
from mover.source.nbd import NbdSource
from mover.source.raw import RawSource
from mover.store import DiskReader
from protocol.arena import Arena
from protocol.block import Block
from protocol.errors import XapiError
from protocol.extent import Extent, merge
from protocol.nbd import Budget, Endpoint, open_reader
from protocol.xapi import Pool, Transfers, nbd_endpoints

_CONNECTIONS = 4


async def differences(
    pool: Pool, transfers: Transfers, vdi: str, size: int, disk: DiskReader, arena: Arena, executor: Executor
) -> list[Extent]:
    """Read the VDI `vdi` (a ref) of `size` bytes and return the parts of `disk` that it does not hold, by whole chunks.

    Read over NBD where that is possible, else over HTTP; of the store, only the tree is read. What the VDI has beyond
    the disk is not looked at. Raises `ProtocolError`, `StoreDamagedError`.
    """
    found: list[Extent] = []

    def compare(blocks: Sequence[Block]) -> None:
        for block in blocks:
            for extent in block.wanted:
                length = min(extent.end, disk.size) - extent.offset
                if length > 0:
                    found.extend(disk.differing(extent.offset, block.part(extent)[:length]))

    async with _source(pool, transfers, vdi, size) as (source, whole):
        await source.deliver(whole, arena, Take(executor, compare))
    return merge(found)


@asynccontextmanager
async def _source(pool: Pool, transfers: Transfers, vdi: str, size: int) -> AsyncIterator[tuple[Source, list[Extent]]]:
    async def locate() -> Sequence[Endpoint]:
        try:
            return await nbd_endpoints(pool, vdi)
        except XapiError as error:
            if error.code != "MESSAGE_METHOD_UNKNOWN":
                raise
            return []

    if not await locate():
        yield RawSource(transfers, vdi, size, Pace(0)), [Extent(0, size)]
        return
    async with open_reader(locate, connections=_CONNECTIONS, budget=Budget(_CONNECTIONS)) as reader:
        yield NbdSource(reader, Pace(0)), [Extent(0, size)]
