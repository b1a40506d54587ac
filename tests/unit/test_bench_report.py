"""The page of figures says what the files of the benchmark say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import report


def taken(quick: bool, value: float) -> dict[str, Any]:
    check = {"name": "ratio", "value": value, "bar": 1.0, "kind": "at least", "unit": "x", "met": value >= 1}
    case = {"name": "case", "seconds": {"ours": [1.0, 2.0, 4.0]}, "checks": [check], "failures": [], "good": value >= 1}
    machine = {"commit": "c", "cpus": 2, "cpu": "p", "memory": "m", "kernel": "k", "python": "3", "load before": 0.5}
    return {"quick": quick, "mib": 64, "rounds": 3, "machine": machine, "scenarios": {"full": [case]}}


def test_the_newest_file_counts_and_a_quick_one_only_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps(taken(False, 0.5)))
    (tmp_path / "2.json").write_text(json.dumps(taken(False, 1.5)))
    (tmp_path / "3-quick.json").write_text(json.dumps(taken(True, 9.0)))
    [only] = report.newest(tmp_path)
    assert only.file == "2.json"
    assert "| full | case | ratio | 1.50 x | ≥ 1 | yes |" in report.figures([only])
    assert "| full | case | ours | 2.00 | 1.00 to 4.00 | 3 |" in report.figures([only])


def test_a_figure_below_its_bar_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps(taken(True, 0.5)))
    assert "| full | case | ratio | 0.50 x | ≥ 1 | **no** |" in report.figures(report.newest(tmp_path))


@pytest.mark.parametrize("plot", [report.plot_times, report.plot_bars])
def test_the_same_figures_give_the_same_plot(
    plot: Callable[[Sequence[report.Taken], Path], None], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    report_of = taken(False, 1.5)
    report_of["scenarios"]["full"][0]["seconds"]["peer"] = [3.0]
    (tmp_path / "1.json").write_text(json.dumps(report_of))
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for target in (first, second):
        plot(report.newest(tmp_path), target)
    assert first.read_bytes() == second.read_bytes()
    assert b"dc:date" not in first.read_bytes()


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing to replace\n")
    with pytest.raises(ValueError, match="no marks"):
        report.write_page([], page)
    assert page.read_text() == "nothing to replace\n"


def test_the_page_is_made_of_the_files_in_the_repository() -> None:
    assert report.figures(report.newest()) in report.PAGE.read_text(), "run python -m bench.report"
