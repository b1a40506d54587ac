"""mover explain"""

from __future__ import annotations

import argparse

import msgspec

from mover.cli.opening import job_of
from mover.cli.runner import show
from mover.explain import DiskOutlook, KeptSnapshot, VmOutlook, explain
from mover.printable import printable
from mover.units import format_size


async def main(options: argparse.Namespace) -> int:
    """Say what the next run would do and why, without running."""
    wanted = [options.vm] if options.vm else []
    told = await explain(job_of(options.job), schedule=options.schedule, vms=wanted, full=options.full)
    if options.json:
        show(msgspec.json.encode({"vms": told}).decode())
        return 0
    for vm in told:
        _show(vm)
    return 0


def _show(vm: VmOutlook) -> None:
    last = f"newest point {vm.last_point}" if vm.last_point else "no point yet"
    show(f"{printable(vm.name)} ({vm.uuid}): mode {vm.mode}, strategy {vm.strategy}, {last}")
    if vm.refused:
        show(f"  would fail: {printable(vm.refused)}")
    if vm.goes_on_with:
        show(f"  goes on with the snapshot {vm.goes_on_with} of a run that was killed: no new one is taken")
    for disk in vm.disks:
        for line in disk_lines(disk):
            show(f"  {line}")
    if vm.memory:
        show("  memory: taken along, and read in full")
    for name in vm.excluded:
        show(f"  disk {printable(name)}: left out by the job")
    for snapshot in vm.snapshots:
        show(f"  {snapshot_line(snapshot)}")


def disk_lines(disk: DiskOutlook) -> list[str]:
    """What would become of a disk, in words."""
    why = f": {printable(disk.reason)}" if disk.reason else ""
    lines = [
        f"disk {disk.position} ({printable(disk.name)}, {format_size(disk.size)}): {disk.mode} over {disk.over}{why}"
    ]
    if disk.base_snapshot:
        lines.append(f"  base: point {disk.base_point}, snapshot {disk.base_snapshot}")
    how_much = "unknown" if disk.to_read is None else f"about {format_size(disk.to_read)}"
    lines.append(f"  to read: {how_much} ({disk.estimate})")
    return lines


def snapshot_line(snapshot: KeptSnapshot) -> str:
    """A snapshot, in words."""
    of = "snapshot" if snapshot.kind == "VM" else "disk snapshot" if snapshot.data else "CBT log"
    return (
        f"{of} {snapshot.uuid} ({printable(snapshot.name)}), taken {snapshot.taken}: "
        f"of {printable(snapshot.owner)}; {snapshot.fate}"
    )
