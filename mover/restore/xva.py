"""A VM of a restore point as an XVA: a stream whose length is known before its first byte, blocks of zeros left out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from mover.pipeline.outflow import blocks_in_order
from mover.restore.progress import RestoreProgress
from mover.store import DiskReader
from protocol.arena import Arena
from protocol.extent import Extent, align
from protocol.xva.ova import Ova, build_ova
from protocol.xva.reader import BLOCK
from protocol.xva.writer import XvaDisk, XvaWriter


@dataclass(frozen=True)
class Content:
    """What goes into one disk of the archive: `extents` of `reader` are no holes."""

    reader: DiskReader
    extents: Sequence[Extent]


def xva_stream(
    ova: Ova,
    disks: Mapping[str, Content],
    progress: Mapping[str, RestoreProgress],
    arena: Arena,
    executor: Executor,
) -> tuple[int, AsyncGenerator[bytes | memoryview, None]]:
    """Length in bytes and parts of the XVA that `ova` describes; `disks` and `progress` are by their ids in it.

    A part is valid until the next one is asked for. Use the generator with `contextlib.aclosing`. Raises `ValueError`
    if the format cannot hold it.
    """
    writer = xva_writer(ova, disks)
    return writer.length, _parts(writer, disks, progress, arena, executor)


def xva_writer(ova: Ova, disks: Mapping[str, Content]) -> XvaWriter:
    """What knows the parts around the data. Raises `ValueError` if the format cannot hold it."""
    return XvaWriter(
        build_ova(ova),
        [XvaDisk(ref, disk.reader.size, _numbers(disk.extents, disk.reader.size)) for ref, disk in disks.items()],
    )


def _numbers(extents: Iterable[Extent], size: int) -> list[int]:
    """The blocks that hold any of `extents`."""
    return [
        number for run in align(extents, BLOCK, size) for number in range(run.offset // BLOCK, -(-run.end // BLOCK))
    ]


async def _parts(
    writer: XvaWriter,
    disks: Mapping[str, Content],
    progress: Mapping[str, RestoreProgress],
    arena: Arena,
    executor: Executor,
) -> AsyncGenerator[bytes | memoryview, None]:
    yield writer.head()
    for disk in writer.disks:
        content = disks[disk.ref]
        blocks = (Extent(block.offset, block.length) for block in writer.disk_blocks(disk))
        async with aclosing(blocks_in_order(content.reader, blocks, arena, executor)) as contents:
            async for block, view in contents:
                number = block.offset // BLOCK
                yield writer.block_head(disk.ref, number, block.length)
                yield view
                tail = writer.block_tail(disk.ref, number, writer.digest(view))
                yield writer.block_padding(block.length) + tail
                progress[disk.ref].add(block.length)
        progress[disk.ref].finish()
    yield writer.trailer()
