"""Where operations read: nbdkit, or a disk of a simulated pool, over NBD or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mover.pipeline.pace import Pace
from mover.source import Source, Take
from mover.source.assemble import zeros
from mover.source.raw import RawSource
from mover.source.vhd import VhdSource, open_vhd
from mover.source.xva import Skip, Target, XvaSource, open_xva
from protocol.arena import Arena
from protocol.extent import Extent, align
from protocol.nbd import Budget, Endpoint, NbdReader, open_reader
from protocol.secret import Secret
from protocol.xapi import Pool, Trust, connect, nbd_endpoints, open_transfers

MiB = 1 << 20
SLOTS = 24

Facts = dict[str, Any]
# Where a disk is read. `ports`: of nbdkit, one host each; with `certificate` a PEM file. `pool` and `vdi`: a
# simulated pool's whereabouts and the UUID of a VDI.
Place = dict[str, Any]


def extents_of(extents: Sequence[Sequence[int]] | None, size: int) -> list[Extent]:
    """None: all of a disk of `size` bytes."""
    return [Extent(0, size)] if extents is None else [Extent(*extent) for extent in extents]


@asynccontextmanager
async def reader_of(place: Place, connections: int) -> AsyncIterator[NbdReader]:
    """The disk, opened over NBD."""
    async with AsyncExitStack() as stack:
        locate = await stack.enter_async_context(located(place))
        yield await stack.enter_async_context(open_reader(locate, connections=connections, budget=Budget(16)))


@asynccontextmanager
async def located(place: Place) -> AsyncIterator[Callable[[], Any]]:
    """What `open_reader` asks for the endpoints."""
    if "pool" in place:
        async with joined(place) as (pool, vdi):

            async def from_pool() -> Sequence[Endpoint]:
                return await nbd_endpoints(pool, vdi)

            yield from_pool
        return
    pem = Path(place["certificate"]).read_text() if "certificate" in place else None
    endpoints = [
        Endpoint("127.0.0.1", port, Secret(""), pem, "localhost" if number == 0 else f"host{number}")
        for number, port in enumerate(place["ports"])
    ]

    async def fixed() -> Sequence[Endpoint]:
        return endpoints

    yield fixed


@asynccontextmanager
async def joined(place: Place) -> AsyncIterator[tuple[Pool, str]]:
    """The pool, and the ref of the VDI."""
    where = place["pool"]
    trust = Trust.pinned(*where["fingerprints"])
    async with connect(where["url"], where["username"], Secret(where["password"]), trust) as pool:
        yield pool, await pool.call("VDI.get_by_uuid", place["vdi"])


@asynccontextmanager
async def _raw_source(place: Place, executor: Executor) -> AsyncIterator[tuple[Source, int]]:
    async with joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        size = int(await pool.call("VDI.get_virtual_size", vdi))
        yield RawSource(transfers, vdi, size, Pace(0)), size


class Vhd:
    """What differs from an empty disk."""

    def __init__(self, source: VhdSource) -> None:
        self._source = source
        self.held = align(source.head.allocated(), 2 * MiB, source.head.size)

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`."""
        return await self._source.deliver(extents, arena, take)


@asynccontextmanager
async def _vhd_source(place: Place, executor: Executor) -> AsyncIterator[tuple[Source, int]]:
    async with joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        base = await pool.call("VDI.get_by_uuid", place["base"])
        async with open_vhd(transfers, vdi, base, Pace(0), zeros) as source:
            yield Vhd(source), source.head.size


class Xva:
    """The one disk of a VM."""

    def __init__(self, source: XvaSource, ref: str, size: int) -> None:
        self.skip: Skip | None = None
        self._source = source
        self._ref = ref
        self._size = size

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`."""

        async def nothing() -> None:
            pass

        assert self.skip is not None
        await self._source.deliver({self._ref: Target(self._size, take, self.skip, nothing, nothing)}, arena)
        return self._source.received


@asynccontextmanager
async def _xva_source(place: Place, executor: Executor) -> AsyncIterator[tuple[Source, int]]:
    async with joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        size = int(await pool.call("VDI.get_virtual_size", vdi))
        vm = await pool.call("VM.get_by_uuid", place["snapshot"])
        async with open_xva(transfers, vm, "none", executor, Pace(0)) as source:
            (ref,) = [item.id for item in source.ova.objects if item.cls == "VDI"]
            yield Xva(source, ref, size), size


STREAMS = {"raw": _raw_source, "vhd": _vhd_source, "xva": _xva_source}
