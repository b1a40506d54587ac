"""The bars of a quick run."""

from __future__ import annotations

from bench.floors import FLOORS, lowered
from bench.measure import Check
from bench.report import newest


def test_only_what_has_a_bar_of_its_own_gets_another_one() -> None:
    lower = lowered("full", Check("times as fast as restic", 3.0, 4.0))
    assert lower.met and lower.bar == FLOORS["full", "times as fast as restic"]
    assert not lowered("full", Check("times as fast as restic", 1.0, 4.0)).met
    other = Check("peak RSS", 300.0, 256.0, "at most")
    assert lowered("full", other) == other


def test_each_is_about_a_figure_that_is_taken_and_lower_than_its_bar_in_full() -> None:
    bars = {
        (taken.name, check["name"]): (check["bar"], check["kind"])
        for taken in newest()
        for case in taken.cases
        for check in case["checks"]
    }
    for figure, floor in FLOORS.items():
        bar, kind = bars[figure]
        assert kind == "at least" and floor < bar, figure
