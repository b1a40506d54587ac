"""A finished run as a table: a line per VM, and their sum."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from mover.printable import printable
from mover.report.summary import RunSummary, VmSummary
from mover.units import format_duration, format_rate, format_size

_NUMBERS = ("changed", "read", "stored", "time", "rate")


def summary_table(summary: RunSummary) -> Table:
    """The table, without frames, so that it can be copied into a mail; it fits 80 columns by cutting names."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("VM", overflow="ellipsis")  # the only column that gives way: rich narrows what may wrap
    table.add_column("outcome", no_wrap=True)
    table.add_column("disks", no_wrap=True)
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    vms = sorted(summary.vms.values(), key=lambda vm: (vm.name, vm.uuid))
    for vm in vms:
        style = None if vm.outcome == "done" else "red"
        table.add_row(_cell(vm.name), vm.outcome, _disks(vm), *_numbers([vm], vm.seconds), style=style)
    if len(vms) > 1:
        table.add_row("all", summary.outcome, "", *_numbers(vms, summary.seconds), style="bold")
    return table


def _cell(text: str) -> Text:
    """Plain text: in a string, rich would read square brackets as styles."""
    return Text(printable(text))


def _disks(vm: VmSummary) -> str:
    return f"{vm.disks}, {vm.full_disks} full" if vm.full_disks else str(vm.disks)


def _numbers(vms: list[VmSummary], seconds: float) -> list[str]:
    read = sum(vm.read for vm in vms)
    return [
        format_size(sum(vm.changed for vm in vms)),
        format_size(read),
        format_size(sum(vm.stored for vm in vms)),
        format_duration(seconds),
        format_rate(read, seconds),
    ]
