"""What we do, as operations on plain values for `bench.child`. Each returns `seconds` and what there is to check."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mover.backup.metadata import VmMetadata, encode
from mover.events import AnyEvent, DiskFinished, VmFinished
from mover.job import load_job
from mover.pipeline.intake import Intake
from mover.pipeline.outflow import blocks_in_order
from mover.pipeline.pace import Pace
from mover.restore.disk_stream import import_disk
from mover.restore.files import restore_to_files
from mover.restore.progress import RestoreProgress
from mover.restore.xva import Content, xva_stream
from mover.run import run_job
from mover.simulator.sparse import data_of
from mover.source import Source, Take
from mover.source.assemble import zeros
from mover.source.nbd import NbdSource
from mover.source.raw import RawSource
from mover.source.vhd import VhdSource, open_vhd
from mover.source.xva import Skip, Target, XvaSource, open_xva
from mover.store import Cost, Point, PointDisk, PointRecord, Store, record, segment
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.index import Loaded
from mover.store.merge import merge as merge_segments
from mover.store.names import DATA, PackName, SegmentName
from protocol.arena import Arena
from protocol.extent import Extent, align, merge, split, total
from protocol.nbd import Block, Budget, Endpoint, NbdReader, open_reader
from protocol.secret import Secret
from protocol.xapi import Pool, Trust, connect, nbd_endpoints, open_transfers
from protocol.xva.ova import Ova

MiB = 1 << 20
_PARTS = 8
SLOTS = 24
# What unlocking takes is no part of what is measured.
_CHEAP = Cost(memory=64, passes=1, lanes=1)

Facts = dict[str, Any]
# Where a disk is read. `ports`: of nbdkit, one host each; with `certificate` a PEM file. `pool` and `vdi`: a
# simulated pool's whereabouts and the UUID of a VDI.
Place = dict[str, Any]


# -- reading ----------------------------------------------------------------------------------------------------------


async def read(
    place: Place, connections: int = 4, extents: Sequence[Sequence[int]] | None = None, merging: bool = True
) -> Facts:
    """Read extents (all: None) to nowhere."""

    async def drop(block: Block) -> None:
        pass

    async with _reader(place, connections) as reader:
        arena = Arena(SLOTS)
        started = time.perf_counter()
        stats = await reader.read(_extents(extents, reader.size), arena, drop, merge_gaps=merging)
        return {
            "seconds": time.perf_counter() - started,
            "read": stats.bytes_read,
            "requests": stats.requests,
            "size": reader.size,
        }


async def read_and_compare(
    place: Place, image: str, connections: int = 4, extents: Sequence[Sequence[int]] | None = None
) -> Facts:
    """The same, but every block is compared with the file `image`. Not for measuring."""
    problems: list[str] = []
    seen = 0
    with _mapped(Path(image)) as expected:

        async def compare(block: Block) -> None:
            nonlocal seen
            for extent in block.wanted:
                start = extent.offset - block.offset
                seen += extent.length
                if not _same(block.view[start : start + extent.length], expected[extent.offset : extent.end]):
                    problems.append(f"what was read differs at byte {extent.offset}")

        async with _reader(place, connections) as reader:
            wanted = _extents(extents, reader.size)
            await reader.read(wanted, Arena(SLOTS), compare)
    if seen != total(wanted):
        problems.append(f"{seen} bytes were delivered instead of {total(wanted)}")
    return {"seconds": 0.0, "failures": problems[:3]}


# -- into a store -----------------------------------------------------------------------------------------------------


async def back_up(
    place: Place,
    store: str,
    connections: int = 4,
    extents: Sequence[Sequence[int]] | None = None,
    merging: bool = True,
    stream: str | None = None,
    new: bool = True,
    compare: str | None = None,
    base: str | None = None,
    passphrase: str | None = None,
) -> Facts:
    """Read extents (all: None) of a disk into a store and commit a restore point.

    What is not read is that of the root `base` (hex), or zeros. `stream` (raw, vhd or xva) reads over HTTP; `new` makes
    the store, encrypted if there is a `passphrase`; `compare` is a root (hex) in it that is likely to be the same. The
    time is from opening or making the store to the commit, connecting included; that of unlocking is none to speak of,
    `unlock` measures it.
    """
    started = time.perf_counter()
    secret = Secret(passphrase) if passphrase else None
    opened = Store.create(store, passphrase=secret, cost=_CHEAP) if new else Store.open(store, passphrase=secret)
    async with AsyncExitStack() as stack:
        writer = stack.enter_context(opened.writer())
        executor = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 2))
        if stream:
            source, size = await stack.enter_async_context(_STREAMS[stream](place, executor))
        else:
            reader = await stack.enter_async_context(_reader(place, connections))
            source, size = NbdSource(reader, Pace(0), merge_gaps=merging), reader.size
        wanted = source.held if isinstance(source, _Vhd) else _extents(extents, size)
        tree = writer.tree(size, **_root("compare", compare, size), **_root("base", base, size))
        intake = Intake(writer, tree, wanted, size, opened.chunk_size, executor, lambda counts: None)
        if isinstance(source, _Xva):
            source.skip = intake.skip
        crossed = await source.deliver(wanted, Arena(SLOTS), intake.take)
        root = intake.finish()
        disk = PointDisk(position="0", name="disk", vdi_uuid="", size=size, root=root)
        about = writer.put_blob(encode(_no_metadata()))
        point = writer.commit(
            PointRecord(vm_uuid="vm", vm_name="vm", created=time.time(), metadata=about, disks=[disk])
        )
    return {
        "seconds": time.perf_counter() - started,
        "size": size,
        "root": root.hex(),
        "point": point,
        "read": crossed,
        "stored": intake.counts.stored,
        "known": intake.counts.known,
        "new": intake.counts.new,
    }


async def unlock(store: str, passphrase: str) -> Facts:
    """Open a new encrypted store with a key of the usual cost."""
    Store.create(store, passphrase=Secret(passphrase))
    started = time.perf_counter()
    Store.open(store, passphrase=Secret(passphrase))
    return {"seconds": time.perf_counter() - started}


async def seal(image: str, store: str) -> Facts:
    """An image from memory into a new store by two threads: a full without whatever brings the bytes."""
    with _mapped(Path(image)) as content:
        started = time.perf_counter()
        opened = Store.create(store)
        blocks = split([Extent(0, len(content))], 2 * MiB)
        with opened.writer() as writer, ThreadPoolExecutor(2) as executor:
            sealed = executor.map(lambda block: writer.seal(content[block.offset : block.end]), blocks)
            stored = sum(one.stored for one in sealed)
        return {"seconds": time.perf_counter() - started, "stored": stored}


async def compress(image: str) -> Facts:
    """What two threads need to compress every chunk of an image that is not all zeros, and nothing else."""
    threads = 2
    chunk_size = 64 << 10
    with _mapped(Path(image)) as content:
        zeros_ = bytes(chunk_size)
        chunks = [
            content[offset : offset + chunk_size]
            for offset in range(0, len(content), chunk_size)
            if not zeros_.startswith(content[offset : offset + chunk_size])
        ]

        def work(first: int) -> int:
            compressor = record.compressor(1)
            return sum(len(compressor.compress(chunk)) for chunk in chunks[first::threads])

        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            stored = sum(executor.map(work, range(threads)))
        return {"seconds": time.perf_counter() - started, "stored": stored}


async def run(job: str, vms: Sequence[str] = (), full: bool = False) -> Facts:
    """`mover run`, with what its events say of each VM and disk."""
    events: list[AnyEvent] = []
    started = time.perf_counter()
    result = await run_job(load_job(Path(job)), vms=vms, full=full, emit=events.append)
    seconds = time.perf_counter() - started
    disks = [event for event in events if isinstance(event, DiskFinished)]
    ended = [event for event in events if isinstance(event, VmFinished)]
    return {
        "seconds": seconds,
        "exit_code": result.exit_code,
        "points": {vm.name: vm.point for vm in result.vms},
        "errors": [event.error for event in ended if event.error],
        "vm seconds": {event.name: event.seconds for event in ended},
        "modes": sorted({disk.mode for disk in disks}),
        "read": sum(disk.read for disk in disks),
        "new": sum(disk.new for disk in disks),
        "stored": sum(disk.stored for disk in disks),
    }


# -- out of a store ---------------------------------------------------------------------------------------------------


async def restore_files(store: str, directory: str) -> Facts:
    """The newest point to raw files."""
    started = time.perf_counter()
    opened = Store.open(store)
    point = opened.point("latest")
    files = await restore_to_files(opened, point, Path(directory), emit=lambda event: None)
    return {"seconds": time.perf_counter() - started, "files": [str(file) for file in files]}


async def restore_stream(store: str, form: str, target: str | None = None) -> Facts:
    """The newest point as a stream (vhd or xva) to nowhere, or to the file `target`."""
    started = time.perf_counter()
    opened = Store.open(store)
    point = opened.point("latest")
    sink = _StreamSink(target)
    with ThreadPoolExecutor(os.cpu_count() or 2) as executor:
        disk = point.record.disks[0]
        if form == "xva":
            reader = opened.disk(disk.root, disk.size)
            content = {"Ref:1": Content(reader, list(reader.extents()))}
            progress = {"Ref:1": RestoreProgress("vm", disk, disk.size, lambda event: None)}
            length, body = xva_stream(Ova({}, []), content, progress, Arena(SLOTS), executor)
            await sink.import_vdi("", format="xva", length=length, body=body)
        else:
            await import_disk(opened, point, disk, sink, "", Arena(SLOTS), executor, lambda event: None)  # type: ignore[arg-type]
    failures = [] if sink.written == sink.length else [f"{sink.written} bytes instead of the {sink.length} announced"]
    return {"seconds": time.perf_counter() - started, "written": sink.written, "failures": failures}


async def compare(store: str, point: str, images: Sequence[str], passphrase: str | None = None) -> Facts:
    """Read every disk of a point back and compare it with a file. Holes of both are not looked at."""
    opened = Store.open(store, passphrase=Secret(passphrase) if passphrase else None)
    found = opened.point(point)
    problems: list[str] = []
    for disk, image in zip(_by_position(found), images, strict=True):
        if problem := await _differs(opened, disk, Path(image)):
            problems.append(problem)
    return {"seconds": 0.0, "failures": problems}


async def read_extents(store: str, extents: Sequence[Sequence[int]], image: str) -> Facts:
    """Some parts of the newest point's disk, one after the other, compared with `image`.

    `read` is what that took from files, index and tree included, in bytes.
    """
    before = _bytes_read()
    started = time.perf_counter()
    opened = Store.open(store)
    disk = opened.point("latest").record.disks[0]
    reader = opened.disk(disk.root, disk.size)
    pieces: list[bytearray] = []
    for offset, length in extents:
        piece = bytearray(length)
        reader.read_into(offset, memoryview(piece))
        pieces.append(piece)
    seconds, crossed = time.perf_counter() - started, _bytes_read() - before
    with _mapped(Path(image)) as expected:
        failures = [
            f"the block at byte {offset} differs from {Path(image).name}"
            for (offset, length), piece in zip(extents, pieces, strict=True)
            if not _same(memoryview(piece), expected[offset : offset + length])
        ]
    return {"seconds": seconds, "read": crossed, "failures": failures[:3]}


def _bytes_read() -> int:
    """By system calls, from the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def make_index(store: str, count: int) -> Facts:
    """A store with `count` records in its index that nobody has ever written, in eighths merged to one segment."""
    opened = Store.create(store)
    backend = DirectoryBackend(store)
    identity = Identity.of(opened.config.key, encrypted=False)
    rng = np.random.default_rng(count)
    loaded = []
    for number in range(_PARTS):
        pack = PackName(b"made-up-records-", number, DATA)
        backend.put(pack.key, b"?")
        keys = rng.integers(0, 2**64, (count // _PARTS, 4), np.uint64)
        rows = np.zeros(len(keys), segment.ROW)
        rows["rest"] = keys[:, 1:]
        name = SegmentName(0, b"made-up-records-", number)
        backend.put(name.key, b"".join(segment.encode(identity, keys, rows, [segment.PackEntry(pack, 1)])))
        data = backend.map(name.key)
        loaded.append(Loaded(name, segment.parse(identity, data), data, None))
    merged = merge_segments(backend, identity, loaded, b"made-up-records-", _PARTS)
    assert merged is not None
    for part in loaded:
        backend.delete(part.name.key)
    return {"seconds": 0.0}


async def stored_bytes(store: str) -> Facts:
    """What the store takes on disk: all of it, packs of data, and everything else."""
    sizes = {path: path.stat().st_size for path in Path(store).rglob("*") if path.is_file()}
    return {"seconds": 0.0, "all": sum(sizes.values())}


# -- inside -----------------------------------------------------------------------------------------------------------


def _root(name: str, root: str | None, size: int) -> dict[str, Any]:
    return {} if root is None else {name: bytes.fromhex(root), f"{name}_size": size}


def _no_metadata() -> VmMetadata:
    """The records of a VM that has none: a point needs some to be restored."""
    return VmMetadata(
        vm={},
        vbds={},
        vdis={},
        vifs={},
        networks={},
        pifs={},
        srs={},
        vtpms={},
        vtpm_contents={},
        software_version={},
    )


class _StreamSink:
    """Takes what would go to a pool."""

    def __init__(self, target: str | None) -> None:
        self._target = target
        self.written = 0
        self.length = 0

    async def import_vdi(
        self, vdi: str, *, format: str, length: int, body: AsyncGenerator[bytes | memoryview, None]
    ) -> None:
        """As `Transfers.import_vdi`."""
        self.length = length
        with open(self._target or os.devnull, "wb", buffering=0) as file:
            async for piece in body:
                self.written += len(piece)
                if self._target:
                    file.write(piece)


async def _differs(store: Store, disk: PointDisk, image: Path) -> str | None:
    size = image.stat().st_size
    if disk.size != size:
        return f"the stored disk has {disk.size} bytes, the image {size}"
    reader = store.disk(disk.root, size)
    with _mapped(image) as expected, image.open("rb") as file, ThreadPoolExecutor(2) as executor:
        held = align(merge([*reader.extents(), *data_of(file.fileno(), size)]), store.chunk_size, size)
        async with aclosing(blocks_in_order(reader, split(held, 2 * MiB), Arena(8), executor)) as blocks:
            async for block, view in blocks:
                if not _same(view, expected[block.offset : block.end]):
                    return f"the stored disk differs from {image.name} in the block at byte {block.offset}"
    return None


def _same(left: memoryview, right: memoryview) -> bool:
    return np.array_equal(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8))


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        yield memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _by_position(point: Point) -> list[PointDisk]:
    return sorted(point.record.disks, key=lambda disk: int(disk.position))


def _extents(extents: Sequence[Sequence[int]] | None, size: int) -> list[Extent]:
    return [Extent(0, size)] if extents is None else [Extent(*extent) for extent in extents]


@asynccontextmanager
async def _reader(place: Place, connections: int) -> AsyncIterator[NbdReader]:
    async with AsyncExitStack() as stack:
        locate = await stack.enter_async_context(_located(place))
        yield await stack.enter_async_context(open_reader(locate, connections=connections, budget=Budget(16)))


@asynccontextmanager
async def _located(place: Place) -> AsyncIterator[Callable[[], Any]]:
    if "pool" in place:
        async with _joined(place) as (pool, vdi):

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
async def _joined(place: Place) -> AsyncIterator[tuple[Pool, str]]:
    """The pool, and the ref of the VDI."""
    where = place["pool"]
    trust = Trust.pinned(*where["fingerprints"])
    async with connect(where["url"], where["username"], Secret(where["password"]), trust) as pool:
        yield pool, await pool.call("VDI.get_by_uuid", place["vdi"])


@asynccontextmanager
async def _raw_source(place: Place, executor: Executor) -> AsyncIterator[tuple[Source, int]]:
    async with _joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        size = int(await pool.call("VDI.get_virtual_size", vdi))
        yield RawSource(transfers, vdi, size, Pace(0)), size


class _Vhd:
    """What differs from an empty disk."""

    def __init__(self, source: VhdSource) -> None:
        self._source = source
        self.held = align(source.head.allocated(), 2 * MiB, source.head.size)

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`."""
        return await self._source.deliver(extents, arena, take)


@asynccontextmanager
async def _vhd_source(place: Place, executor: Executor) -> AsyncIterator[tuple[Source, int]]:
    async with _joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        base = await pool.call("VDI.get_by_uuid", place["base"])
        async with open_vhd(transfers, vdi, base, executor, Pace(0), zeros) as source:
            yield _Vhd(source), source.head.size


class _Xva:
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
    async with _joined(place) as (pool, vdi), open_transfers(pool) as transfers:
        size = int(await pool.call("VDI.get_virtual_size", vdi))
        vm = await pool.call("VM.get_by_uuid", place["snapshot"])
        async with open_xva(transfers, vm, "none", executor, Pace(0)) as source:
            (ref,) = [item.id for item in source.ova.objects if item.cls == "VDI"]
            yield _Xva(source, ref, size), size


_STREAMS = {"raw": _raw_source, "vhd": _vhd_source, "xva": _xva_source}


async def snapshot(place: Place) -> Facts:
    """A snapshot of the VM `vm` (UUID) of a pool; `vdis` are the UUIDs of its disks."""
    where = place["pool"]
    trust = Trust.pinned(*where["fingerprints"])
    async with connect(where["url"], where["username"], Secret(where["password"]), trust) as pool:
        vm = await pool.call("VM.get_by_uuid", place["vm"])
        taken = await pool.run("VM.snapshot", vm, "bench")
        vdis = []
        for vbd in await pool.call("VM.get_VBDs", taken):
            record = await pool.call("VBD.get_record", vbd)
            if record["type"] == "Disk":
                vdis.append(await pool.call("VDI.get_uuid", record["VDI"]))
        uuid = await pool.call("VM.get_uuid", taken)
    return {"seconds": 0.0, "vdis": vdis, "snapshot": uuid}
