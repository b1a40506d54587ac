"""A run in a few numbers, folded from its events: what monitoring and webhooks get."""

from __future__ import annotations

import msgspec

from mover.events import AnyEvent, DiskFinished, DiskPlanned, Note, RunFinished, RunStarted, VmFinished, VmStarted
from mover.store import MEMORY


class VmSummary(msgspec.Struct, kw_only=True):
    """What became of one of its VMs, summed over the disks that were read to the end."""

    uuid: str
    name: str
    outcome: str = "unknown"
    point: str | None = None
    error: str | None = None
    hint: str | None = None
    seconds: float = 0.0
    changed: int = 0
    read: int = 0
    stored: int = 0
    disks: int = 0
    full_disks: int = 0
    reasons: dict[str, str] = {}


class RunSummary(msgspec.Struct, kw_only=True):
    """What became of it as a whole. Of a run that failed before it began, most is empty."""

    job: str = ""
    run: str = ""
    outcome: str = "unknown"
    exit_code: int = 1
    error: str | None = None
    hint: str | None = None
    seconds: float = 0.0
    finished: float = 0.0
    read: int = 0
    stored: int = 0
    warnings: list[str] = []
    vms: dict[str, VmSummary] = {}


class Summary:
    """Takes events; `value` is what they add up to so far, since the last run started."""

    def __init__(self, job: str = "") -> None:
        self.value = RunSummary(job=job)

    def __call__(self, event: AnyEvent, now: float) -> None:
        value = self.value
        match event:
            case RunStarted():
                self.value = RunSummary(job=event.job, run=event.run)
            case VmStarted():
                self._vm(event.vm).name = event.name
            case DiskPlanned(mode="full", reason=str(reason)):
                self._vm(event.vm).reasons[event.disk] = reason
            case DiskFinished():
                vm = self._vm(event.vm)
                vm.disks += 1
                vm.changed += event.changed
                vm.read += event.read
                vm.stored += event.stored
                vm.full_disks += event.mode == "full" and event.disk != MEMORY
            case VmFinished():
                vm = self._vm(event.vm)
                vm.name, vm.outcome, vm.point = event.name, event.outcome, event.point
                vm.error, vm.hint, vm.seconds = event.error, event.hint, event.seconds
            case Note(level="warning"):
                value.warnings.append(self._about(event))
            case RunFinished():
                value.outcome, value.exit_code, value.seconds = event.outcome, event.exit_code, event.seconds
                value.read, value.stored, value.finished = event.read, event.stored, now
                value.error, value.hint = event.error, event.hint
            case _:
                pass

    def _about(self, note: Note) -> str:
        """The words of a warning, with the VM that they are about."""
        name = self._vm(note.vm).name if note.vm in self.value.vms else note.vm
        where = name if note.disk is None else f"{name}/{note.disk}"
        return note.message if name is None or note.message.startswith(name) else f"{where}: {note.message}"

    def _vm(self, uuid: str) -> VmSummary:
        return self.value.vms.setdefault(uuid, VmSummary(uuid=uuid, name=uuid))
