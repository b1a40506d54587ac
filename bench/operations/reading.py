"""Reading over NBD to nowhere, and what there is to read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench.operations.content import mapped, same
from bench.operations.place import SLOTS, Facts, MiB, Place, extents_of, reader_of
from protocol.arena import Arena
from protocol.block import Block
from protocol.extent import total
from protocol.secret import Secret
from protocol.xapi import Trust, connect


async def read(
    place: Place,
    connections: int = 4,
    extents: Sequence[Sequence[int]] | None = None,
    merging: bool = True,
    longest: int = 2 * MiB,
) -> Facts:
    """Read extents (all: None) to nowhere, in requests of `longest` bytes at most."""

    def drop(blocks: Sequence[Block]) -> None:
        pass

    async with reader_of(place, connections) as reader:
        arena = Arena(SLOTS, longest)
        started = time.perf_counter()
        stats = await reader.read(extents_of(extents, reader.size), arena, drop, merge_gaps=merging)
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
    with mapped(Path(image)) as expected:

        def compare(blocks: Sequence[Block]) -> None:
            nonlocal seen
            for block in blocks:
                for extent in block.wanted:
                    seen += extent.length
                    if not same(block.part(extent), expected[extent.offset : extent.end]):
                        problems.append(f"what was read differs at byte {extent.offset}")

        async with reader_of(place, connections) as reader:
            wanted = extents_of(extents, reader.size)
            await reader.read(wanted, Arena(SLOTS), compare)
    if seen != total(wanted):
        problems.append(f"{seen} bytes were delivered instead of {total(wanted)}")
    return {"seconds": 0.0, "failures": problems[:3]}


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
