"""`python -m bench.report`: write the figures and plots of docs/performance.md from the newest files in bench/results/.

Each scenario is taken from the newest file that has it in full, or if there is none from the newest `--quick` one.
Needs matplotlib for the plots.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.md"
_BEGIN, _END = "<!-- figures: written by python -m bench.report -->\n", "<!-- end of figures -->\n"
_OURS, _OTHERS, _BELOW = "#1f6f4a", "#9aa5b1", "#b5482f"


class Taken(NamedTuple):
    """The cases of one scenario, as in JSON, and the file and machine they are from."""

    name: str
    cases: Sequence[Mapping[str, Any]]
    report: Mapping[str, Any]
    file: str


def newest(folder: Path = RESULTS) -> list[Taken]:
    """Each scenario that was ever measured, from the newest file that has it; files of `--quick` come last."""
    found: dict[str, Taken] = {}
    reports = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    for path, report in sorted(reports, key=lambda one: not one[1]["quick"]):
        for name, cases in report["scenarios"].items():
            found[name] = Taken(name, cases, report, path.name)
    return [found[name] for name in sorted(found)]


def figures(scenarios: Sequence[Taken]) -> str:
    """Where the figures are from, and a table of every check."""
    lines = [*_sources(scenarios), "", "| scenario | case | what | value | bar | |", "|---|---|---|---:|---:|---|"]
    for taken in scenarios:
        for case in taken.cases:
            lines += [_row(taken.name, case, check) for check in case["checks"]]
            lines += [f"| {taken.name} | {case['name']} | FAILED: {what} | | | **no** |" for what in case["failures"]]
    lines += ["", "| scenario | case | who | median, s | spread, s | rounds |", "|---|---|---|---:|---:|---:|"]
    lines += [
        f"| {taken.name} | {case['name']} | {who} | {statistics.median(seconds):.2f} "
        f"| {min(seconds):.2f} to {max(seconds):.2f} | {len(seconds)} |"
        for taken in scenarios
        for case in taken.cases
        for who, seconds in case["seconds"].items()
        if seconds
    ]
    return "\n".join(lines) + "\n"


def _sources(scenarios: Sequence[Taken]) -> Iterator[str]:
    by_file: dict[str, list[Taken]] = {}
    for taken in scenarios:
        by_file.setdefault(taken.file, []).append(taken)
    for file, those in sorted(by_file.items()):
        report, machine = those[0].report, those[0].report["machine"]
        form = ", --quick" if report["quick"] else ""
        yield (
            f"- `bench/results/{file}`: {', '.join(taken.name for taken in those)}. Image of {report['mib']} MiB, "
            f"{report['rounds']} rounds{form}; commit {machine['commit']}, {machine['cpus']} x {machine['cpu']}, "
            f"{machine['memory']}, Linux {machine['kernel']}, Python {machine['python']}, "
            f"load before {machine['load before']:.1f}."
        )


def _row(name: str, case: Mapping[str, Any], check: Mapping[str, Any]) -> str:
    bar = "" if check["bar"] is None else f"{'≥' if check['kind'] == 'at least' else '≤'} {check['bar']:.3g}"
    met = "" if check["bar"] is None else "yes" if check["met"] else "**no**"
    value = f"{check['value']:.2f} {check['unit']}".strip()
    return f"| {name} | {case['name']} | {check['name']} | {value} | {bar} | {met} |"


def write_page(scenarios: Sequence[Taken], page: Path = PAGE) -> None:
    """Put the figures between the marks. Raises `ValueError` if the page has none."""
    text = page.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks for the figures")
    page.write_text(before + begin + figures(scenarios) + end + after)


def plot_times(scenarios: Sequence[Taken], target: Path) -> None:
    """Median and spread of everybody in the scenarios that have a peer."""
    from matplotlib.figure import Figure

    cases = [
        (taken.name, case)
        for taken in scenarios
        if taken.name in ("full", "unchanged", "tls", "restore", "http")
        for case in taken.cases
        if len(case["seconds"]) > 1
    ]
    heights = [len(case["seconds"]) + 1 for _, case in cases]
    figure = Figure(figsize=(8, 0.27 * sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, case) in zip(panels, cases, strict=True):
        names = list(case["seconds"])
        middle = [statistics.median(case["seconds"][who]) for who in names]
        spread = [
            [value - min(case["seconds"][who]) for who, value in zip(names, middle, strict=True)],
            [max(case["seconds"][who]) - value for who, value in zip(names, middle, strict=True)],
        ]
        colours = [_OURS if who in ("ours", "TLS", "raw", "vhd", "xva") else _OTHERS for who in names]
        panel.barh(names, middle, xerr=spread, color=colours, error_kw={"linewidth": 0.8})
        panel.invert_yaxis()
        panel.set_title(f"{name}: {case['name']}, seconds", fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    _save(figure, target)


def plot_bars(scenarios: Sequence[Taken], target: Path) -> None:
    """How far every figure is on the good side of its bar, as a factor; peaks of memory are left out."""
    from matplotlib.figure import Figure

    labels: list[str] = []
    margins: list[float] = []
    for taken in scenarios:
        for case in taken.cases:
            for check in case["checks"]:
                if check["bar"] and check["value"] and check["unit"] != "MiB":
                    share = check["value"] / check["bar"]
                    labels.append(f"{taken.name}: {case['name']}: {check['name']}")
                    margins.append(share if check["kind"] == "at least" else 1 / share)
    figure = Figure(figsize=(9, 0.19 * len(labels) + 0.8), layout="constrained")
    panel = figure.subplots()
    panel.barh(labels, [margin - 1 for margin in margins], left=1, color=[_OURS if m >= 1 else _BELOW for m in margins])
    panel.set_xscale("log")
    panel.axvline(1, color="black", linewidth=0.8)
    panel.invert_yaxis()
    panel.margins(y=0.01)
    panel.tick_params(labelsize=6)
    panel.set_xlabel("times as good as the bar asks", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    """Write it so that the same figures are the same bytes: without a date, and with ids that are not random."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "mover"}):
        figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Write all of it."""
    scenarios = newest()
    write_page(scenarios)
    plot_times(scenarios, DOCS / "performance-times.svg")
    plot_bars(scenarios, DOCS / "performance-bars.svg")


if __name__ == "__main__":
    main()
