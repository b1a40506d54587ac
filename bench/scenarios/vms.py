"""Several VMs of a simulated pool in one run: four large ones beside one, and many small ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.child import call
from bench.measure import Case, Check, MiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import SimulatedPool, simulated_pool

_OPEN = ("--nbd", "insecure", "--plain-http")
_SHIFT = 4096
_WITHOUT_BASE = '[backup]\nkeep-snapshot = "none"\nmode = "full"\n'


def run_four(setting: Setting) -> Iterator[Case]:
    """Bytes a second of four fulls at once, beside the best of them alone."""
    each = setting.pick(512, 64, 16)
    case = Case(f"four VMs of {each} MiB at once")
    names = [f"vm{number}" for number in range(4)]
    with setting.scratch() as scratch, simulated_pool(scratch / "pool", *_OPEN) as pool:
        image = setting.image()
        for number, name in enumerate(names):
            made = pool.make_vm(name, [each * MiB])
            # The same content, cut elsewhere: equally hard for all, and no chunk of one is a chunk of another.
            pool.copy_in(made["vdis"][0], image, number * _SHIFT, each * MiB)
        store = scratch / "store"
        job = str(pool.job(scratch, store, _WITHOUT_BASE))

        def back_up(*wanted: str) -> Sample:
            shutil.rmtree(store, ignore_errors=True)
            return call("run", job=job, vms=wanted)

        alone = {name: (lambda name=name: back_up(name)) for name in names}
        samples = interleave(setting.rounds, {**alone, "four": lambda: back_up(*names)})
        _problems(case, [sample for taken in samples.values() for sample in taken])
        last = back_up(*names)
        _compare(case, pool, store, last, names, scratch)
    case.series = seconds_of(samples)
    # Four at once against four times the best alone, in bytes a second.
    best = [min(round_) for round_ in zip(*(case.series[name] for name in names), strict=True)]
    case.checks.append(Check("throughput / best alone", 4 * ratio(best, case.series["four"]), 0.95, unit="x"))
    spreads = [
        max(sample.facts["vm seconds"].values()) / min(sample.facts["vm seconds"].values())
        for sample in samples["four"]
    ]
    case.checks.append(Check("slowest VM / fastest", max(spreads), 2.0, "at most", "x"))
    case.check_rss(samples["four"])
    yield case


def run_many(setting: Setting) -> Iterator[Case]:
    """VMs a second. Each is small, so that what counts is what a VM costs and not its bytes."""
    count, size = setting.pick(200, 30, 4), 32 * MiB
    case = Case(f"{count} VMs of 32 MiB")
    names = [f"vm{number}" for number in range(count)]
    with setting.scratch() as scratch, simulated_pool(scratch / "pool", *_OPEN) as pool:
        for number, name in enumerate(names):
            vdi = pool.make_vm(name, [size])["vdis"][0]
            pool.steer("fill", vdi=vdi, offset=(number % 16) * MiB, length=MiB, kind="text")
        store = scratch / "store"
        job = str(pool.job(scratch, store, _WITHOUT_BASE))

        def all_of_them() -> Sample:
            shutil.rmtree(store, ignore_errors=True)
            return call("run", job=job)

        samples = interleave(1 if setting.small else 2, {"all": all_of_them}, warm_up=False)["all"]
        _problems(case, samples)
        _compare(case, pool, store, samples[-1], names[:: max(1, count // 8)], scratch)
        if len(samples[-1].facts["points"]) != count:
            case.failures.append(f"{len(samples[-1].facts['points'])} VMs were backed up instead of {count}")
    case.series = {"all": [sample.seconds for sample in samples]}
    case.checks.append(Check("VMs a second", count / min(case.series["all"]), 10.0))
    case.check_rss(samples)
    yield case


def _problems(case: Case, samples: list[Sample]) -> None:
    for sample in samples:
        case.failures += sample.facts["errors"][:3]


def _compare(case: Case, pool: SimulatedPool, store: Path, sample: Sample, names: list[str], scratch: Path) -> None:
    """Nobody writes meanwhile, so the live disks are what was backed up."""
    for name in names:
        disk = scratch / "dumped"
        pool.steer("dump", vdi=pool.vdis[name], path=str(disk))
        point = sample.facts["points"][name]
        case.failures += call("compare", store=str(store), point=point, images=[str(disk)]).facts["failures"]
        disk.unlink()


SCENARIOS = (
    Scenario("vms", "four VMs at once, beside each alone", run_four, quick=False),
    Scenario("many", "many small VMs in one run", run_many),
)
