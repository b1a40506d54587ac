"""mover run"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from mover.cli.opening import job_of
from mover.cli.runner import show
from mover.events import AnyEvent, Emit
from mover.job import SelectedDisk, SelectedVm
from mover.printable import printable
from mover.report.outputs import reporting
from mover.report.summary import Summary
from mover.report.view import open_view
from mover.run import plan_run, run_job
from mover.units import format_size


async def main(options: argparse.Namespace) -> int:
    """Back up what the job selects."""
    job = job_of(options.job)
    if options.dry_run:
        plan = await plan_run(job, schedule=options.schedule, vms=options.vm, full=options.full)
        if options.json:
            show(msgspec.json.encode({"vms": [_fields(vm) for vm in plan]}).decode())
        else:
            for vm in plan:
                _print_plan(vm)
        return 0
    summary = Summary(job.name)
    try:
        with open_view(options.progress, sys.stderr) as view:
            async with reporting(job.report, job.name, lambda event: _both(summary, view, event)) as emit:
                result = await run_job(job, schedule=options.schedule, vms=options.vm, full=options.full, emit=emit)
    finally:
        options.warned = bool(summary.value.warnings)
        # Also of a run that failed: a program finds out why without reading messages.
        if options.json:
            show(msgspec.json.encode(summary.value).decode())
    if not options.json:
        for done in result.vms:
            show(f"{printable(done.name)}\t{done.outcome}\t{done.point or '-'}")
    return result.exit_code


def _both(summary: Summary, view: Emit, event: AnyEvent) -> None:
    summary(event, time.time())
    view(event)


def _print_plan(vm: SelectedVm) -> None:
    show(f"{printable(vm.name)} ({vm.uuid}): {vm.backup.mode}, strategy {vm.backup.strategy}")
    for disk in vm.disks:
        show(f"  {disk.position} {printable(disk.name)}: {format_size(disk.size)}, CBT {'on' if disk.cbt else 'off'}")
    for disk in vm.excluded_disks:
        show(f"  {disk.position} {printable(disk.name)}: excluded")


def _fields(vm: SelectedVm) -> dict[str, object]:
    return {
        "uuid": vm.uuid,
        "name": vm.name,
        "backup": msgspec.to_builtins(vm.backup),
        "disks": [_disk(disk) for disk in vm.disks],
        "excluded_disks": [_disk(disk) for disk in vm.excluded_disks],
    }


def _disk(disk: SelectedDisk) -> dict[str, object]:
    return {
        "position": disk.position,
        "name": disk.name,
        "vdi": disk.vdi_uuid,
        "size": disk.size,
        "cbt": disk.cbt,
    }
