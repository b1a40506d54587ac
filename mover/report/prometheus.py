"""A summary in Prometheus' text format, for the node exporter's textfile collector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mover.report.summary import RunSummary, VmSummary

_VM_METRICS = (
    ("mover_vm_success", "Whether the VM's last backup succeeded.", lambda vm: int(vm.outcome == "done")),
    ("mover_vm_duration_seconds", "How long it took.", lambda vm: vm.seconds),
    ("mover_vm_changed_bytes", "What differs from the restore point before.", lambda vm: vm.changed),
    ("mover_vm_read_bytes", "What was read from the pool.", lambda vm: vm.read),
    ("mover_vm_stored_bytes", "What the store grew by.", lambda vm: vm.stored),
    ("mover_vm_full_disks", "How many disks were read in full.", lambda vm: vm.full_disks),
)


def render(summary: RunSummary) -> str:
    """The text of a finished run."""
    lines: list[str] = []
    job = f'job="{_escaped(summary.job)}"'
    for name, help, value in (
        ("mover_run_exit_code", "Exit code of the last run.", summary.exit_code),
        ("mover_run_finished_time_seconds", "When the last run ended.", f"{summary.finished:.3f}"),
        ("mover_run_duration_seconds", "How long it took.", summary.seconds),
        ("mover_run_read_bytes", "What was read from the pool.", summary.read),
        ("mover_run_stored_bytes", "What the store grew by.", summary.stored),
        ("mover_run_warnings", "How many warnings there were.", len(summary.warnings)),
    ):
        lines += [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name}{{{job}}} {value}"]
    vms = sorted(summary.vms.values(), key=lambda vm: vm.uuid)
    for name, help, of in _VM_METRICS:
        lines += [f"# HELP {name} {help}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{job},{labels}}} {of(vm)}" for vm, labels in zip(vms, _labels(vms), strict=True)]
    lines += _reasons(vms, job)
    return "\n".join(lines) + "\n"


def _reasons(vms: list[VmSummary], job: str) -> Iterator[str]:
    """Why disks were read in full: the words are a label."""
    name = "mover_disk_full_info"
    yield f"# HELP {name} Why a disk was read in full, where that was not asked for; always 1."
    yield f"# TYPE {name} gauge"
    for vm, labels in zip(vms, _labels(vms), strict=True):
        for disk, reason in sorted(vm.reasons.items()):
            yield f'{name}{{{job},{labels},disk="{_escaped(disk)}",reason="{_escaped(reason)}"}} 1'


def write(summary: RunSummary, path: Path) -> None:
    """Replace `path` in one step: a collector never sees half a file. Raises `OSError`."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(render(summary))
        unfinished.chmod(0o644)  # it is for another program, whatever this user's mask is
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _labels(vms: list[VmSummary]) -> Iterator[str]:
    for vm in vms:
        yield f'vm="{_escaped(vm.uuid)}",name="{_escaped(vm.name)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
