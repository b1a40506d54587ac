"""The index of a store of many chunks, plain and encrypted: memory, time to open, lookups a second."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.child import call
from bench.measure import Case, Check, Sample, interleave, seconds_of
from bench.registry import Scenario, Setting

_LOOKUPS = 200_000
# MiB, seconds, thousands a second; for 16 million records.
_RSS, _OPEN, _RATE = 400.0, 2.0, 300.0
_PASSPHRASES = {"plain": None, "encrypted": "correct horse battery staple"}


def run(setting: Setting) -> Iterator[Case]:
    """A case for each kind of store. Of an encrypted one a copy is decrypted when it is opened for the first time."""
    count = setting.pick(16_000_000, 1_000_000, 80_000)
    with setting.scratch() as scratch:
        for kind, passphrase in _PASSPHRASES.items():
            call("make_index", store=str(scratch / kind), count=count, passphrase=passphrase)
        samples = interleave(setting.rounds, {kind: _lookup(scratch, kind) for kind in _PASSPHRASES}, warm_up=False)
    for kind, taken in samples.items():
        yield _judge(Case(f"{kind} index of {count:,} records"), taken)


def _lookup(scratch: Path, kind: str) -> Callable[[], Sample]:
    return lambda: call("look_up", store=str(scratch / kind), lookups=_LOOKUPS, passphrase=_PASSPHRASES[kind])


def _judge(case: Case, taken: Sequence[Sample]) -> Case:
    case.series = seconds_of({"known": taken})
    case.series["not known"] = [sample.facts["others"] for sample in taken]
    case.failures = [failure for sample in taken for failure in sample.facts["failures"]]
    case.checks = [
        Check(f"lookups of ids that are {who}", _LOOKUPS / statistics.median(seconds) / 1000, _RATE, unit="k/s")
        for who, seconds in case.series.items()
    ]
    few = case.series["known, 32 at a time"] = [sample.facts["few"] for sample in taken]
    asked_by_a_backup = _LOOKUPS / statistics.median(few) / 1000
    case.checks.append(Check("lookups of ids that are known, 32 at a time", asked_by_a_backup, None, unit="k/s"))
    for name, fact in (("to open for the first time", "first"), ("to open", "again")):
        slowest = max(sample.facts[fact] for sample in taken)
        case.checks.append(Check(f"seconds {name}", slowest, _OPEN, "at most", "s"))
    case.checks.append(Check("peak RSS", max(sample.facts["rss"] for sample in taken), _RSS, "at most", "MiB"))
    return case


SCENARIOS = (Scenario("index", "the index of many chunks, plain and encrypted: opening it, lookups, memory", run),)
