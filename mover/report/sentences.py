"""Events as sentences: what both the plain view and the bars say in words."""

from __future__ import annotations

from mover.events import (
    AnyEvent,
    DamageFound,
    DiskFinished,
    DiskPlanned,
    Note,
    Retry,
    RunFinished,
    RunStarted,
    VmFinished,
    VmStarted,
)
from mover.printable import printable_lines
from mover.units import format_duration, format_rate, format_size


class Sentences:
    """Turns events into lines; remembers the names that later events refer to."""

    def __init__(self) -> None:
        self._vms: dict[str, str] = {}

    def of(self, event: AnyEvent) -> str | None:
        """What to say, or None for an event that needs no words. It is fit for a terminal, whatever names there are."""
        words = self._words(event)
        return None if words is None else printable_lines(words)

    def _words(self, event: AnyEvent) -> str | None:
        match event:
            case RunStarted():
                return f"{event.action} {event.run}: job {event.job}, {', '.join(event.vms)}"
            case DiskPlanned():
                why = f": {event.reason}" if event.reason else ""
                return (
                    f"{self._disk(event.vm, event.disk)} ({event.name}): {event.mode}, "
                    f"{format_size(event.to_read)} of {format_size(event.size)}{why}"
                )
            case DiskFinished():
                return self._finished(event)
            case VmFinished():
                return f"{event.name}: " + (
                    f"point {event.point} in {format_duration(event.seconds)}"
                    if event.outcome == "done"
                    else f"{event.outcome}: {event.error or 'interrupted'}"
                    + (f" (hint: {event.hint})" if event.hint else "")
                )
            case Note():
                where = f"{self._disk(event.vm, event.disk)}: " if event.vm else ""
                return f"{'warning: ' if event.level == 'warning' else ''}{where}{event.message}"
            case Retry():
                return f"{event.what}, {event.server}: {event.error}; trying again in {event.wait:.1f} s"
            case DamageFound():
                hurt = ", ".join(event.points) or "none"
                disks = f"; disks: {', '.join(event.disks)}" if event.disks else ""
                return f"damaged: {event.object}: {event.reason} (points: {hurt}{disks})"
            case RunFinished(run=""):
                return None  # It never began: the error says it all.
            case RunFinished():
                return (
                    f"{event.outcome}: read {format_size(event.read)}, stored {format_size(event.stored)} "
                    f"in {format_duration(event.seconds)}"
                )
            case VmStarted():
                self._vms[event.vm] = event.name
                return None
            case _:
                return None

    def _disk(self, vm: str | None, disk: str | None) -> str:
        name = self._vms.get(vm or "", vm or "")
        return f"{name}/{disk}" if disk is not None else name

    def _finished(self, event: DiskFinished) -> str:
        where = f"{self._disk(event.vm, event.disk)} ({event.name})"
        speed = f"{format_duration(event.seconds)}, {format_rate(event.read, event.seconds)}"
        if event.mode == "restore":
            there = f", {format_size(event.known)} were there already" if event.known else ""
            return f"{where}: restored {format_size(event.read)} in {speed}{there}"
        return (
            f"{where}: changed {format_size(event.changed)}, read {format_size(event.read)} in {speed}, "
            f"stored {format_size(event.stored)}"
        )
