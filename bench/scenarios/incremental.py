"""Changed granules into a store: merged reads, beside exact reads and beside reads of whole 2 MiB blocks.

The smaller the share that changed, the larger the disk: a dozen granules are over before there is anything to measure.
Wherever anybody reads there is content, as on a disk in use: the rest of the 2 MiB around each granule is not zeros.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.child import call
from bench.inputs import copy_extents, dirty_extents, make_sparse
from bench.measure import Case, Check, MiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit, simulated_pool
from protocol.extent import Extent, align, total

_BLOCK = 2 * MiB
# The share of the granules that is dirty, and the size of the disk in MiB.
_SHARES = {0.001: 8192, 0.01: 2048, 0.1: 512}
# Most cells are over in a fraction of a second, of which a sync of the disk more or less is a tenth.
_LEAST_ROUNDS = 5


def run(setting: Setting) -> Iterator[Case]:
    """nbdkit without latency, then the simulated pool's NBD servers with each latency."""
    patterns = [(share, mib, clustered) for share, mib in _SHARES.items() for clustered in (False, True)]
    if setting.small:
        patterns = [(0.01, setting.pick(0, 256, 64), False)]
    for share, mib, clustered in patterns:
        size = mib * MiB
        extents = dirty_extents(size, share, clustered=clustered)
        name = f"{share:.1%} dirty, {'clustered' if clustered else 'scattered'}"
        with setting.scratch() as scratch:
            disk, changed = scratch / "disk", scratch / "changed"
            make_sparse(disk, size, align(extents, _BLOCK, size), setting.image())
            copy_extents(changed, extents, disk)
            with nbdkit("file", str(disk)) as port:
                yield _case(setting, f"{name}, nbdkit", {"ports": [port]}, extents, changed, exact=True)
            yield from _on_pool(setting, name, extents, disk, changed)


def _on_pool(setting: Setting, name: str, extents: list[Extent], disk: Path, changed: Path) -> Iterator[Case]:
    latencies = (0,) if setting.tiny else (10,) if setting.small else (0, 2, 10, 20)
    with _pool_with(disk) as (steer, place):
        for latency in latencies:
            steer("network", latency=latency / 1000)
            yield _case(setting, f"{name}, pool, {latency} ms", place, extents, changed, exact=False)


@contextmanager
def _pool_with(disk: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A pool without TLS that has a snapshot with the content of `disk`."""
    with simulated_pool(disk.parent / "pool", "--nbd", "insecure", "--plain-http") as pool:
        made = pool.make_vm("vm", [disk.stat().st_size])
        pool.copy_in(made["vdis"][0], disk)
        taken = call("snapshot", place={"pool": pool.where, "vm": made["vm"]})
        yield pool.steer, {"pool": pool.where, "vdi": taken.facts["vdis"][0]}


def _case(
    setting: Setting,
    name: str,
    place: dict[str, Any],
    extents: list[Extent],
    changed: Path,
    *,
    exact: bool,
) -> Case:
    """The ways to read in turn. What ours has stored is compared with `changed`, which holds the extents alone."""
    case = Case(name)
    scratch = changed.parent
    dirty = total(extents)
    blocks = align(extents, _BLOCK, changed.stat().st_size)

    def reading(who: str, asked: list[Extent], *, merging: bool) -> Sample:
        shutil.rmtree(scratch / who, ignore_errors=True)
        return call("back_up", place=place, store=str(scratch / who), extents=asked, merging=merging)

    samples = interleave(
        setting.rounds if setting.small else max(setting.rounds, _LEAST_ROUNDS),
        {
            "2 MiB blocks": lambda: reading("blocks", blocks, merging=False),
            "exact": lambda: reading("exact", extents, merging=False),
            "ours": lambda: reading("ours", extents, merging=True),
        },
    )
    mine, store = samples["ours"], str(scratch / "ours")
    last = mine[-1]
    found = call("compare", store=store, point=last.facts["point"], images=[str(changed)])
    case.failures += found.facts["failures"]
    written = call("stored_bytes", store=store).facts["all"]
    case.series = seconds_of(samples)
    # The better way to read, not the luckier of two runs: a minimum of two is less than either, whoever is better.
    better = min(case.series["exact"], case.series["2 MiB blocks"], key=statistics.median)
    case.checks += [
        Check("time / better of exact and 2 MiB", ratio(case.series["ours"], better), 1.1, "at most", "x"),
        Check("bytes read / dirty", max(s.facts["read"] for s in mine) / dirty, 1.0 if exact else None, "at most", "x"),
        Check("bytes new / dirty", max(s.facts["new"] for s in mine) / dirty, 1.0, "at most", "x"),
        Check("2 MiB blocks: bytes read / dirty", samples["2 MiB blocks"][-1].facts["read"] / dirty, unit="x"),
    ]
    case.check_rss(mine)
    case.facts = {
        "dirty": dirty,
        "stored": last.facts["stored"],
        "store on disk": written,
        "all but packed content / dirty": (written - last.facts["stored"]) / dirty,
    }
    return case


SCENARIOS = (Scenario("incremental", "changed granules, beside exact reads and reads of 2 MiB blocks", run),)
