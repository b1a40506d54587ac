"""One VM's history as pictures: SVG to stand in a page, whose style sheet decides on the colours."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from mover.errors import UsageError
from mover.history import Sample
from mover.units import format_size

Axes = Any

# Stand-ins that no other part of a picture has, and what the page calls them.
_INK, _FAINT = "#0a0b01", "#0a0b02"
_SERIES = {
    "changed": "#0a0b03",
    "read": "#0a0b04",
    "stored": "#0a0b05",
    "duration": "#0a0b06",
    "deduplication": "#0a0b07",
    "compression": "#0a0b08",
    "unusual": "#0a0b09",
}
_VARIABLES = {_INK: "ink", _FAINT: "faint"} | {color: name for name, color in _SERIES.items()}
_KiB = 1024.0


def require_matplotlib() -> None:
    """Raises `UsageError` with the command that installs it."""
    try:
        _library("matplotlib")
    except ImportError as error:
        missing = "the plots of a report need matplotlib, which is not installed"
        raise UsageError(missing, "install matplotlib beside mover: `./dev setup` does") from error


def _library(name: str) -> Any:
    """Imported when something is drawn: matplotlib is optional, and takes long to load."""
    return importlib.import_module(name)


def draw(samples: Sequence[Sample], unusual: Sequence[bool], salt: str) -> str:
    """Bytes, time and ratios of one VM's points over time, as one `<svg>` element without a background.

    `unusual` says of each sample whether it is to be ringed. `salt` keeps the ids of several pictures in a page apart.
    Needs matplotlib (see `require_matplotlib`).
    """
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 9.0,
        "text.parse_math": False,
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.facecolor": "none",
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "grid.color": _FAINT,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with _library("matplotlib").rc_context(settings):
        figure = _library("matplotlib.figure").Figure(figsize=(11.2, 3.1), layout="constrained")
        figure.patch.set_alpha(0.0)
        sizes, times, ratios = figure.subplots(1, 3)
        moments = [datetime.fromtimestamp(sample.time, UTC) for sample in samples]
        _sizes(sizes, moments, samples, unusual)
        _durations(times, moments, samples)
        _ratios(ratios, moments, samples)
        for axes in (sizes, times, ratios):
            _dates(axes, moments)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _for_a_page(text.getvalue())


def _sizes(axes: Axes, moments: list[datetime], samples: Sequence[Sample], unusual: Sequence[bool]) -> None:
    # An incremental reads just what changed: the one line is to be seen below the other.
    for name, width, alpha in (("changed", 4.0, 0.45), ("read", 1.3, 1.0), ("stored", 1.3, 1.0)):
        values = [max(getattr(sample, name), _KiB) for sample in samples]
        look: dict[str, Any] = {"marker": "o", "markersize": 1.3 + width, "linewidth": width, "alpha": alpha}
        axes.plot(moments, values, color=_SERIES[name], label=name, **look)
    fulls = [(at, sample.read) for at, sample in zip(moments, samples, strict=True) if sample.full_disks]
    _mark([(at, max(read, _KiB)) for at, read in fulls], axes, "s", _SERIES["read"], "read in full", 6)
    odd = [(at, s.changed) for at, s, flag in zip(moments, samples, unusual, strict=True) if flag]
    _mark([(at, max(changed, _KiB)) for at, changed in odd], axes, "o", _SERIES["unusual"], "unusual", 9)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(_formatter(format_size))
    axes.set_title("bytes per run", loc="left", fontsize=10)
    axes.grid(axis="y")
    _legend(axes)


def _mark(
    points: Sequence[tuple[datetime, float]], axes: Axes, marker: str, color: str, label: str, size: float
) -> None:
    if points:
        moments, values = zip(*points, strict=True)
        axes.plot(moments, values, marker, markersize=size, fillstyle="none", color=color, label=label)


def _legend(axes: Axes) -> None:
    """Below the plot: inside it would hide something sooner or later."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), fontsize=8, ncols=3, borderpad=0, columnspacing=1.2)


def _durations(axes: Axes, moments: list[datetime], samples: Sequence[Sample]) -> None:
    longest = max(sample.seconds for sample in samples)
    unit, seconds = ("h", 3600) if longest >= 5400 else ("min", 60) if longest >= 90 else ("s", 1)
    values = [sample.seconds / seconds for sample in samples]
    axes.plot(moments, values, color=_SERIES["duration"], marker="o", markersize=2.6, linewidth=1.3)
    axes.set_ylim(bottom=0, top=None if longest else 1)
    axes.set_title(f"duration ({unit})", loc="left", fontsize=10)
    axes.grid(axis="y")


def _ratios(axes: Axes, moments: list[datetime], samples: Sequence[Sample]) -> None:
    for name, of in (("deduplication", Sample.dedupe), ("compression", Sample.compression)):
        known = [(at, value) for at, s in zip(moments, samples, strict=True) if (value := of.__get__(s)) is not None]
        if known:
            found, values = zip(*known, strict=True)
            axes.plot(found, values, color=_SERIES[name], label=name, marker="o", markersize=2.6, linewidth=1.3)
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.9), max(high, 4.4))
    axes.yaxis.set_major_formatter(_formatter(lambda value: f"{value:.3g} : 1"))
    axes.set_title("ratios", loc="left", fontsize=10)
    axes.grid(axis="y")
    if axes.get_legend_handles_labels()[0]:
        _legend(axes)


def _dates(axes: Axes, moments: list[datetime]) -> None:
    dates = _library("matplotlib.dates")
    if len(moments) < 2:
        axes.set_xticks(moments, [f"{moment:%Y-%m-%d}" for moment in moments])
        return
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _formatter(words: Callable[[float], str]) -> Any:
    return _library("matplotlib.ticker").FuncFormatter(lambda value, _: words(value))


def _for_a_page(svg: str) -> str:
    """Only the element itself, its colours by name, its ids apart from those of other pictures, sized by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    # What matplotlib names by counting would be there once per picture; nothing refers to it.
    svg = re.sub(r' id="(?:[a-z_0-9.]+_\d+)"', "", svg)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
