"""A disk of a restore point as a dynamic VHD: a stream whose length is known before its first byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from uuid import UUID

from mover.pipeline.outflow import blocks_in_order
from mover.restore.progress import RestoreProgress
from mover.store import DiskReader
from protocol.arena import Arena
from protocol.extent import Extent, align
from protocol.vhd import BLOCK_SIZE, VhdWriter, stream_length


def vhd_stream(
    reader: DiskReader,
    extents: Sequence[Extent],
    arena: Arena,
    executor: Executor,
    progress: RestoreProgress,
    parent: tuple[UUID, str] | None = None,
) -> tuple[int, AsyncGenerator[bytes | memoryview, None]]:
    """Length in bytes and parts of the VHD of a disk, at most `MAX_SIZE` long, of which `extents` are no holes.

    With a `parent` (id and name) it is a differencing one, and `extents` are what differs from that.

    A part is valid until the next one is asked for. Use the generator with `contextlib.aclosing`.
    """
    blocks = _blocks(extents, reader.size)
    return stream_length(reader.size, len(blocks)), _parts(reader, blocks, arena, executor, progress, parent)


def _blocks(extents: Sequence[Extent], size: int) -> list[Extent]:
    """The blocks of a VHD that hold any of `extents`; the last may be cut by the disk's end."""
    return [
        Extent(offset, min(BLOCK_SIZE, size - offset))
        for run in align(extents, BLOCK_SIZE, size)
        for offset in range(run.offset, run.end, BLOCK_SIZE)
    ]


async def _parts(
    reader: DiskReader,
    blocks: list[Extent],
    arena: Arena,
    executor: Executor,
    progress: RestoreProgress,
    parent: tuple[UUID, str] | None,
) -> AsyncGenerator[bytes | memoryview, None]:
    writer = VhdWriter(reader.size, [block.offset // BLOCK_SIZE for block in blocks], creator=b"tap\0", parent=parent)
    yield writer.head()
    async with aclosing(blocks_in_order(reader, blocks, arena, executor)) as contents:
        async for block, view in contents:
            yield writer.block_prefix()
            yield view
            if block.length < BLOCK_SIZE:
                yield bytes(BLOCK_SIZE - block.length)
            progress.add(block.length)
    yield writer.trailer()
