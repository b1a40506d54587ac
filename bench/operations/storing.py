"""Reading into a store, and the parts of that, each alone."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.operations.content import mapped
from bench.operations.place import SLOTS, STREAMS, Facts, MiB, Place, Vhd, Xva, extents_of, reader_of
from mover.backup.metadata import VmMetadata, encode
from mover.events import AnyEvent, DiskFinished, VmFinished
from mover.job import load_job
from mover.pipeline.intake import Intake
from mover.pipeline.pace import Pace
from mover.run import run_job
from mover.source.nbd import NbdSource
from mover.store import Cost, PointDisk, PointRecord, Store, record
from protocol.arena import Arena
from protocol.extent import Extent, split
from protocol.secret import Secret

# What unlocking takes is no part of what is measured.
_CHEAP = Cost(memory=64, passes=1, lanes=1)


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
            source, size = await stack.enter_async_context(STREAMS[stream](place, executor))
        else:
            reader = await stack.enter_async_context(reader_of(place, connections))
            source, size = NbdSource(reader, Pace(0), merge_gaps=merging), reader.size
        wanted = source.held if isinstance(source, Vhd) else extents_of(extents, size)
        tree = writer.tree(size, **_root("compare", compare, size), **_root("base", base, size))
        intake = Intake(writer, tree, wanted, size, opened.chunk_size, executor, lambda counts: None)
        if isinstance(source, Xva):
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
    with mapped(Path(image)) as content:
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
    with mapped(Path(image)) as content:
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
