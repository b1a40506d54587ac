"""A store of many chunks, of which half the points are forgotten: how long a prune takes, and how much memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from bench.child import call
from bench.measure import RSS_BAR, Case, Check, MiB, Sample, interleave, seconds_of
from bench.registry import Scenario, Setting

# Seconds for a million chunks.
_BAR = 10.0


def run(setting: Setting) -> Iterator[Case]:
    """One case: forget and prune, then compare what is left."""
    count = setting.pick(1_000_000, 20_000, 4_000)
    case = Case(f"half the points of a store of {count:,} chunks forgotten")
    with setting.scratch() as scratch:
        template, store = scratch / "template", scratch / "store"
        call("make_generations", store=str(template), count=count)

        def prune() -> Sample:
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(template, store)
            return call("forget_and_prune", store=str(store))

        samples = interleave(setting.rounds, {"forget and prune": prune}, warm_up=False)
        case.failures += call("check_generations", store=str(store)).facts["failures"]
    taken = samples["forget and prune"]
    for sample in taken:
        if not sample.facts["repacked"] or not sample.facts["freed"] > sample.facts["copied"]:
            case.failures.append("no space was given back")
    case.series = seconds_of(samples)
    case.checks.append(Check("seconds of the slowest", max(case.series["forget and prune"]), _BAR, "at most", "s"))
    case.check_rss(taken)
    case.facts = {name: taken[-1].facts[name] for name in ("records", "deleted", "repacked", "freed", "copied")}
    yield case


def run_many(setting: Setting) -> Iterator[Case]:
    """The same of few and of many chunks, of which little is kept so that they can be many: memory must not follow."""
    counts = (setting.pick(1_000_000, 100_000, 4_000), setting.pick(8_000_000, 400_000, 16_000))
    case = Case(f"half the points of stores of {counts[0]:,} and {counts[1]:,} small chunks forgotten")
    peaks = []
    with setting.scratch() as scratch:
        for count in counts:
            store = str(scratch / str(count))
            call("make_generations", store=store, count=count, small=True)
            sample = call("forget_and_prune", store=store)
            case.failures += call("check_small", store=store).facts["failures"]
            shutil.rmtree(store)
            if not sample.facts["repacked"] or not sample.facts["freed"] > sample.facts["copied"]:
                case.failures.append("no space was given back")
            case.series[f"{count:,} chunks"] = [sample.seconds]
            peaks.append(sample.facts["rss"])
    less, more = case.series.values()
    case.checks = [
        Check("peak RSS", max(peaks), RSS_BAR, "at most", "MiB"),
        Check("bytes of it for each chunk more", (peaks[1] - peaks[0]) * MiB / (counts[1] - counts[0]), None, unit="B"),
        Check(
            "seconds a million chunks take, of many / of few", more[0] * counts[0] / less[0] / counts[1], None, unit="x"
        ),
    ]
    yield case


SCENARIOS = (
    Scenario("prune", "forgetting half the points of a store of many chunks, and pruning it", run),
    Scenario("prune-many", "the same of stores of few and of very many chunks: memory", run_many, quick=False),
)
