"""How long the command line takes to say anything."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from bench.measure import Case, Check, Sample, interleave, seconds_of
from bench.registry import Scenario, Setting


def run(setting: Setting) -> Iterator[Case]:
    """`mover --help`, with a Python that does nothing beside it."""
    case = Case("mover --help")

    def timed(*command: str) -> Sample:
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        return Sample(time.perf_counter() - started, {"said": len(done.stdout)})

    samples = interleave(
        2 * setting.rounds,
        {
            "mover --help": lambda: timed(sys.executable, "-m", "mover", "--help"),
            "python -c pass": lambda: timed(sys.executable, "-c", "pass"),
        },
    )
    case.series = seconds_of(samples)
    if not all(sample.facts["said"] for sample in samples["mover --help"]):
        case.failures.append("it said nothing")
    middle = sorted(case.series["mover --help"])[setting.rounds]
    case.checks.append(Check("seconds", middle, 0.2, "at most", "s"))
    yield case


SCENARIOS = (Scenario("start", "mover --help", run),)
