"""A disk of 1 TiB that is nearly empty: what an incremental of 100 MiB takes, start of the program included."""

from __future__ import annotations

from collections.abc import Iterator

from bench.child import call, call_afresh
from bench.inputs import GRANULE
from bench.measure import RSS_BAR, Case, Check, MiB
from bench.registry import Scenario, Setting
from bench.servers import simulated_pool

_SIZE = 1 << 40


def run(setting: Setting) -> Iterator[Case]:
    """A full, then incrementals of freshly written granules, through `run_job` against a simulated pool."""
    dirty = setting.pick(100, 100, 8) * MiB
    case = Case(f"incrementals of a disk of 1 TiB, {dirty // MiB} MiB scattered")
    with setting.scratch() as scratch, simulated_pool(scratch / "pool", "--nbd", "insecure", "--plain-http") as pool:
        made = pool.steer("make_vm", name="vm", sizes=[_SIZE])
        vdi = made["vdis"][0]
        pool.steer("fill", vdi=vdi, offset=0, length=8 * MiB, kind="text")
        store = scratch / "store"
        job = str(pool.job(scratch, store))
        samples = [call_afresh("run", job=job)]
        pool.steer("granules", vdi=vdi, clear=True)
        shares: list[float] = []
        for _ in range(setting.pick(setting.rounds, 2, 1)):
            # Pieces of a granule less a page at random pages touch one granule or two; the guest counts which.
            pool.steer("scatter", vdi=vdi, count=dirty // GRANULE, length=4096)
            changed = len(pool.steer("granules", vdi=vdi, clear=True)["granules"]) * GRANULE
            samples.append(call_afresh("run", job=job))
            shares.append(samples[-1].facts["read"] / changed)
        for sample in samples:
            case.failures += sample.facts["errors"]
        if [sample.facts["modes"] for sample in samples[1:]] != [["incremental"]] * len(samples[1:]):
            case.failures.append("a run was not incremental")
        disk = scratch / "disk"
        pool.steer("dump", vdi=vdi, path=str(disk))
        point = samples[-1].facts["points"]["vm"]
        case.failures += call("compare", store=str(store), point=point, images=[str(disk)]).facts["failures"]
    later = samples[1:]
    case.series = {"run": [s.seconds for s in later], "process": [s.facts["process"] for s in later]}
    case.checks += [
        Check("seconds of the slowest process", max(case.series["process"]), 10.0, "at most", "s"),
        Check("bytes read / dirty granules", max(shares), None, "at most", "x"),
        Check("peak RSS", max(sample.facts["rss"] for sample in samples), RSS_BAR, "at most", "MiB"),
    ]
    yield case


SCENARIOS = (Scenario("sparse", "a disk of 1 TiB with 100 MiB changed", run, quick=False),)
