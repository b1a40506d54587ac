"""A whole VM as an XVA stream over HTTP: all its disks, one after the other, and `ova.xml` before them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from mover.pipeline.pace import Pace
from mover.source import Take
from mover.source.assemble import Assembler, assembling
from mover.source.inflow import Inflow
from protocol.arena import Arena
from protocol.errors import FormatError
from protocol.extent import Extent
from protocol.tasks import in_thread
from protocol.xapi import Transfers
from protocol.xapi.export import ExportStream
from protocol.xapi.transfer import Compression
from protocol.xva.compression import Unpacker
from protocol.xva.reader import BlockEnd, Data, DiskEnd, OvaXml, XvaReader, verify_block
from protocol.xva.reader import Event as XvaEvent

Skip = Callable[[Extent], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """Where one disk of `size` bytes goes. `skip` is told what is zeros; `begin` and `end` enclose its blocks."""

    size: int
    take: Take
    skip: Skip
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


class XvaSource:
    """The rest of a VM's export whose `ova_xml` has been read."""

    def __init__(
        self, ova: OvaXml, events: AsyncGenerator[XvaEvent, None], inflow: Inflow, stream: ExportStream
    ) -> None:
        self.ova_xml = ova.xml
        self.ova = ova.ova
        self._events = events
        self._inflow = inflow
        self._stream = stream

    @property
    def received(self) -> int:
        """Bytes that have crossed the wire."""
        return self._stream.received

    async def deliver(self, targets: Mapping[str, Target], arena: Arena) -> None:
        """Deliver every byte of each disk to the target of its id in `ova_xml`; disks without one are passed over.

        Every checksum is compared before its block is taken. Raises `FormatError` if the stream is damaged or lacks a
        disk, `XapiError` or `TransferError` if the export failed.
        """
        missing = dict(targets)
        async for event in self._events:
            if isinstance(event, Data | BlockEnd):
                target = missing.pop(event.disk, None)
                await (self._pass_over() if target is None else self._deliver(event, target, arena))
        if missing:
            raise FormatError("XVA", f"nothing of the disks {', '.join(sorted(missing))} is in it")

    async def _deliver(self, first: XvaEvent, target: Target, arena: Arena) -> None:
        await target.begin()
        covered = 0
        event = first
        async with assembling(target.size, arena, target.take) as assembler, self._placing(assembler):
            while not isinstance(event, DiskEnd):
                if isinstance(event, Data):
                    slot = event.offset - event.offset % arena.slot_size
                    if slot > covered:
                        await target.skip(Extent(covered, slot - covered))
                    covered = max(covered, slot + arena.slot_size)
                    if self._inflow.placed:
                        assembler.placed(Extent(event.offset, len(event.view)))
                    else:
                        await assembler.add(event.offset, event.view)
                elif isinstance(event, BlockEnd):
                    _check(assembler, event)
                event = await self._next()
            if event.end != target.size:
                raise FormatError("XVA", f"{event.disk} ends at byte {event.end} of {target.size}")
        await target.end()

    @asynccontextmanager
    async def _placing(self, assembler: Assembler) -> AsyncIterator[None]:
        """What comes meanwhile is content of the assembler's disk."""
        self._inflow.place = assembler.place
        try:
            yield
        finally:
            self._inflow.place = None

    async def _pass_over(self) -> None:
        while not isinstance(await self._next(), DiskEnd):
            pass

    async def _next(self) -> XvaEvent:
        async for event in self._events:
            return event
        raise FormatError("XVA", "it ends within a disk")


def _check(assembler: Assembler, block: BlockEnd) -> None:
    """Have the block compared with its checksum before it is sealed."""
    if block.check is None:
        raise FormatError("XVA", "it has no checksums beside its blocks: an old release made it, or no XenServer")
    try:
        assembler.check(Extent(block.offset, block.length), lambda view: verify_block(view, block))
    except ValueError:
        reason = f"a block of {block.disk} lies at byte {block.offset} of it, which is no multiple of 1 MiB"
        raise FormatError("XVA", reason, block.position) from None


@asynccontextmanager
async def open_xva(
    transfers: Transfers, vm: str, compression: Compression, executor: Executor, pace: Pace
) -> AsyncIterator[XvaSource]:
    """Begin to export the VM or snapshot `vm` (a ref), and read `ova.xml`. Raises as `Transfers.export_vm` does."""
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(transfers.export_vm(vm, compression=compression))
        inflow = Inflow(stream)
        events = await stack.enter_async_context(aclosing(_read(stream, inflow, executor, pace)))
        async for first in events:
            if not isinstance(first, OvaXml):
                raise FormatError("XVA", "it does not begin with ova.xml")
            yield XvaSource(first, events, inflow, stream)
            return
        raise FormatError("XVA", "the stream is empty")


async def _read(stream: ExportStream, inflow: Inflow, executor: Executor, pace: Pace) -> AsyncGenerator[XvaEvent, None]:
    """What is in the stream; past the last event, the format's end was seen and the task has succeeded."""
    unpacker = Unpacker()
    reader = XvaReader()
    while data := await inflow.next(reader.coming() if unpacker.compression == "none" else None):
        await pace.spend(len(data))
        async for piece in _unpacked(unpacker, data, executor):
            for event in reader.feed(piece):
                yield event
    unpacker.finish()
    reader.finish()
    await stream.finish()


async def _unpacked(unpacker: Unpacker, data: memoryview, executor: Executor) -> AsyncGenerator[memoryview, None]:
    """What a piece of the stream stands for, a piece at a time; decompression is a worker thread's work."""
    pieces = unpacker.feed(data)
    while (piece := await _next_piece(unpacker, pieces, executor)) is not None:
        yield piece


async def _next_piece(unpacker: Unpacker, pieces: Iterator[memoryview], executor: Executor) -> memoryview | None:
    if unpacker.compression == "none":
        return next(pieces, None)
    return await in_thread(executor, lambda: next(pieces, None))
