"""What the demo ends with: a table of runs, and one of restores."""

from __future__ import annotations

from typing import NamedTuple, TextIO

from rich.console import Console
from rich.table import Table

from mover.units import format_rate, format_size


class Read(NamedTuple):
    """One disk of one run. Sizes in bytes."""

    run: str
    disk: str
    mode: str
    changed: int
    read: int
    stored: int
    seconds: float


class Comparison(NamedTuple):
    """One disk of one restore; `difference` is the first byte that differs."""

    run: str
    disk: str
    target: str
    size: int
    difference: int | None


def print_tables(reads: list[Read], comparisons: list[Comparison], stream: TextIO) -> None:
    """Print both tables."""
    console = Console(file=stream, width=None if stream.isatty() else 110)
    table = Table(title="what was read and stored", title_justify="left")
    for name in ("run", "disk", "read as"):
        table.add_column(name)
    for name in ("changed", "read", "stored", "speed"):
        table.add_column(name, justify="right")
    for read in reads:
        sizes = (format_size(size) for size in (read.changed, read.read, read.stored))
        table.add_row(read.run, read.disk, read.mode, *sizes, format_rate(read.read, read.seconds))
    console.print(table)
    results = Table(title="what came back", title_justify="left")
    for name in ("run", "disk", "restored to", "compared with its snapshot"):
        results.add_column(name)
    for comparison in comparisons:
        verdict = "identical" if comparison.difference is None else f"DIFFERS at byte {comparison.difference}"
        results.add_row(
            comparison.run, comparison.disk, comparison.target, f"{verdict} ({format_size(comparison.size)})"
        )
    console.print(results)
