"""What a GiB of disk costs when the disk is large, and what a chunk costs when the store holds many."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import call
from bench.inputs import GRANULE, make_image, make_sparse
from bench.measure import RSS_BAR, Case, Check, GiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit, write_extents
from protocol.extent import Extent

_HELD_PER_GIB = 64
# Reading a disk of this size takes minutes: once is enough.
_ONCE = 64
_BAR = 1.2


def run_disks(setting: Setting) -> Iterator[Case]:
    """A full and an incremental of sparse disks; each GiB holds as much as any other, and as much of it changes."""
    sizes = (1, 2) if setting.tiny else (1, 8) if setting.small else (1, 16, 256)
    full, later = Case("full of a sparse disk"), Case("incremental of a sparse disk")
    with setting.scratch() as scratch:
        for gib in sizes:
            _measure_disk(setting, gib, scratch, full, later)
    for case in (full, later):
        smallest, largest = (min(case.series[f"{gib} GiB"]) / gib for gib in (sizes[0], sizes[-1]))
        case.checks += [
            Check(f"a GiB of {sizes[-1]} / a GiB of {sizes[0]}", largest / smallest, _BAR, "at most", "x"),
            Check("peak RSS", case.facts["rss"], RSS_BAR, "at most", "MiB"),
        ]
        yield case


def _measure_disk(setting: Setting, gib: int, scratch: Path, full: Case, later: Case) -> None:
    """Both cases get a series for this size. Every other granule that holds anything is changed.

    The disk is in the memory of the server: a large file would be a matter of the kernel, which keeps in its cache what
    it reads, holes included, and has no room for all of it.
    """
    held = [Extent(offset, GRANULE) for offset in range(0, gib * GiB, GiB // _HELD_PER_GIB)]
    disk, store = scratch / "disk", str(scratch / "store")
    make_sparse(disk, gib * GiB, held, setting.image())
    rounds = 1 if gib > _ONCE else setting.rounds
    with nbdkit("memory", str(gib * GiB)) as port:
        place = {"ports": [port]}
        write_extents(port, disk, held)

        def everything() -> Sample:
            shutil.rmtree(store, ignore_errors=True)
            return call("back_up", place=place, store=store)

        whole = interleave(rounds, {"full": everything}, warm_up=False)["full"]
        with disk.open("r+b") as file:
            for extent in held[::2]:
                file.seek(extent.offset)
                file.write(os.urandom(extent.length))
        write_extents(port, disk, held[::2])
        base = whole[-1].facts["root"]

        def changes() -> Sample:
            return call("back_up", place=place, store=store, extents=held[::2], new=False, base=base)

        # What is written already is not written again, so only the first time counts.
        parts = [changes()]
    found = call("compare", store=store, point=parts[-1].facts["point"], images=[str(disk)])
    shutil.rmtree(store)
    for case, samples in ((full, whole), (later, parts)):
        case.failures += [f"{gib} GiB: {failure}" for failure in found.facts["failures"]]
        case.series[f"{gib} GiB"] = [sample.seconds for sample in samples]
        case.facts["rss"] = max(case.facts.get("rss", 0.0), *(sample.facts["rss"] for sample in samples))


def run_chunks(setting: Setting) -> Iterator[Case]:
    """The same disk into stores that hold few and many other chunks: their index is made up, their packs are not."""
    counts = (
        (1_000, 20_000) if setting.tiny else (10_000, 1_000_000) if setting.small else (10_000, 400_000, 16_000_000)
    )
    image = make_image(setting.work, setting.pick(512, 256, 64))
    fresh, again = (
        Case("new chunks into a store that holds others"),
        Case("known chunks into a store that holds others"),
    )
    with setting.scratch() as scratch, nbdkit("file", str(image)) as port:
        place = {"ports": [port]}
        for count in counts:
            call("make_index", store=str(scratch / f"template {count}"), count=count)

        def into(count: int) -> Callable[[], Sample]:
            def once() -> Sample:
                store = scratch / f"store {count}"
                shutil.rmtree(store, ignore_errors=True)
                shutil.copytree(scratch / f"template {count}", store, copy_function=os.link)
                return call("back_up", place=place, store=str(store), new=False)

            return once

        def once_more(count: int) -> Callable[[], Sample]:
            store = str(scratch / f"store {count}")
            return lambda: call("back_up", place=place, store=store, new=False)

        for case, measure in ((fresh, into), (again, once_more)):
            samples = interleave(setting.rounds, {f"{count:,} chunks": measure(count) for count in counts})
            case.series = seconds_of(samples)
            least, most = case.series[f"{counts[0]:,} chunks"], case.series[f"{counts[-1]:,} chunks"]
            case.checks.append(
                Check(f"among {counts[-1]:,} / among {counts[0]:,}", ratio(most, least), _BAR, "at most", "x")
            )
            case.check_rss([sample for taken in samples.values() for sample in taken])
            for name, taken in samples.items():
                if case is again and taken[-1].facts["new"]:
                    case.failures.append(f"among {name} what was stored was not found")
        for count in counts:
            store = str(scratch / f"store {count}")
            found = call("compare", store=store, point="latest", images=[str(image)])
            fresh.failures += found.facts["failures"]
        yield fresh
        yield again


SCENARIOS = (
    Scenario("disks", "full and incremental of small and large sparse disks: what a GiB costs", run_disks, quick=False),
    Scenario("chunks", "the same disk into stores of few and many chunks: what a chunk costs", run_chunks, quick=False),
)
