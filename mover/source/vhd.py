"""What a disk differs in from an earlier snapshot, as a VHD stream over HTTP: needs no NBD."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from mover.pipeline.pace import Pace
from mover.source import Take
from mover.source.assemble import Fill, assembling
from mover.source.inflow import Inflow
from protocol.arena import Arena
from protocol.errors import FormatError
from protocol.extent import Extent, split
from protocol.vhd import Head
from protocol.vhd_stream import Data, VhdReader
from protocol.vhd_stream import Event as VhdEvent
from protocol.xapi import Transfers
from protocol.xapi.export import ExportStream


class VhdSource:
    """The rest of a VHD export whose head has been read. It can only deliver what it holds."""

    def __init__(
        self, head: Head, events: AsyncGenerator[VhdEvent, None], inflow: Inflow, stream: ExportStream, fill: Fill
    ) -> None:
        self.head = head
        self._events = events
        self._inflow = inflow
        self._stream = stream
        self._fill = fill

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`. `extents` are those of the head, aligned to slots."""
        slots = deque(block.offset for block in split(extents, arena.slot_size))
        end = 0
        async with assembling(self.head.size, arena, take, self._fill) as assembler:

            async def begin(end: int) -> None:
                # A block may be there without any of its sectors: then all of it is the base's.
                while slots and slots[0] < end:
                    await assembler.begin(slots.popleft())

            async def place(offset: int, length: int) -> memoryview:
                await begin(offset + 1)
                return await assembler.place(offset, length)

            self._inflow.place = place
            async for event in self._events:
                if not isinstance(event, Data) or event.offset >= self.head.size:
                    continue
                if event.offset < end:
                    raise FormatError("VHD", "its blocks are not in ascending order")
                end = event.offset + len(event.view)
                await begin(end)
                if self._inflow.placed:
                    assembler.placed(Extent(event.offset, len(event.view)))
                else:
                    await assembler.add(event.offset, event.view)
            await begin(self.head.size)
        return self._stream.received


@asynccontextmanager
async def open_vhd(transfers: Transfers, vdi: str, base: str, pace: Pace, fill: Fill) -> AsyncIterator[VhdSource]:
    """Begin to export what the VDI `vdi` differs in from the VDI `base` (refs), and read the head.

    `fill` writes, in a worker thread, what the base has where the stream leaves something out of a slot. Raises
    `XapiError` if the pool refuses, `TransferError`, `FormatError`.
    """
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(transfers.export_vdi(vdi, format="vhd", base=base))
        inflow = Inflow(stream)
        events = await stack.enter_async_context(aclosing(_read(stream, inflow, pace)))
        async for first in events:
            if not isinstance(first, Head):
                raise FormatError("VHD", "the stream does not begin with its head")
            yield VhdSource(first, events, inflow, stream, fill)
            return
        raise FormatError("VHD", "the stream is empty")


async def _read(stream: ExportStream, inflow: Inflow, pace: Pace) -> AsyncGenerator[VhdEvent, None]:
    """What is in the stream; past the last event, the format's end was seen and the task has succeeded."""
    reader = VhdReader(None)
    while data := await inflow.next(reader.coming()):
        await pace.spend(len(data))
        for event in reader.feed(data):
            yield event
    reader.finish()
    await stream.finish()
