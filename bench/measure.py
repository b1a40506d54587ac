"""What is measured, as plain data: series of samples, checks of their ratios against bars, and cases made of both."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MiB = 1 << 20
GiB = 1 << 30
RSS_BAR = 256.0


class Sample(NamedTuple):
    """One measurement: `seconds` of the work, and what else was learnt from it."""

    seconds: float
    facts: Mapping[str, Any] = {}


class Check(NamedTuple):
    """A figure and the bar it has to reach; without a bar it is only told."""

    name: str
    value: float
    bar: float | None = None
    kind: Literal["at least", "at most"] = "at least"
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.kind == "at least" else self.value <= self.bar


@dataclass
class Case:
    """One line of a scenario. `failures` is what was wrong with the content; `absent` which peers were missing."""

    name: str
    series: dict[str, list[float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Right content, and every bar reached."""
        return not self.failures and all(check.met for check in self.checks)

    def check_rss(self, samples: Sequence[Sample], name: str = "peak RSS") -> None:
        """The largest peak of these samples has a bar."""
        self.checks.append(Check(name, max(sample.facts["rss"] for sample in samples), RSS_BAR, "at most", "MiB"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "seconds": self.series,
            "checks": [{**check._asdict(), "met": check.met} for check in self.checks],
            "failures": self.failures,
            "absent": self.absent,
            "facts": self.facts,
            "good": self.good,
        }


def interleave(
    rounds: int, contestants: Mapping[str, Callable[[], Sample]], *, warm_up: bool = True
) -> dict[str, list[Sample]]:
    """Let everybody run once a round, beginning with another one each time; a first round does not count.

    What one of them left to be written to disk is written before the next one starts.
    """
    names = list(contestants)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            os.sync()
            sample = contestants[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples


def seconds_of(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[float]]:
    """Only the times."""
    return {name: [sample.seconds for sample in taken] for name, taken in samples.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios round by round: the machine may be faster a minute later, within a round it is not."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def ratios_to_ours(case: Case, bars: Mapping[str, float], ours: str = "ours") -> None:
    """How many times as fast as each other contestant ours is, with its bar if it has one."""
    for name, seconds in case.series.items():
        if name != ours:
            value = ratio(seconds, case.series[ours])
            case.checks.append(Check(f"times as fast as {name}", value, bars.get(name), unit="x"))


def line_of(name: str, seconds: Sequence[float]) -> str:
    """Median and spread, for people."""
    middle = statistics.median(seconds)
    return f"{name:28} median {middle:8.3f} s   {min(seconds):.3f} to {max(seconds):.3f} s, {len(seconds)} rounds"
