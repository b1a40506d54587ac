"""What the restore of one disk says: the plan, how far it is, and the end."""

from __future__ import annotations

import time

from mover.events import DiskFinished, DiskPlanned, DiskProgress, Emit
from mover.store import PointDisk

_REPORT_EVERY = 0.2


class RestoreProgress:
    """Begins with the plan; `add` reports a few times a second, `finish` once.

    Sizes in bytes; `found` is what was there before.
    """

    def __init__(self, vm: str, disk: PointDisk, to_write: int, emit: Emit) -> None:
        self._vm = vm
        self._disk = disk
        self._to_write = to_write
        self._emit = emit
        self._done = 0
        self.found = 0
        self._started = time.monotonic()
        self._reported = 0.0
        emit(DiskPlanned(vm=vm, disk=disk.position, name=disk.name, size=disk.size, mode="restore", to_read=to_write))

    def add(self, length: int, found: int = 0) -> None:
        """So much more is there, of which `found` was there before; whole blocks may hold more than was asked for."""
        self._done = min(self._done + length, self._to_write)
        self.found += found
        if time.monotonic() - self._reported >= _REPORT_EVERY:
            self._report()

    def restart(self) -> None:
        """What was there before is not what it should be: all that was said about it counts no more."""
        self._done = self.found = 0

    def finish(self) -> None:
        """All of it is there."""
        self._done = self._to_write
        self._report()
        self._emit(
            DiskFinished(
                vm=self._vm,
                disk=self._disk.position,
                name=self._disk.name,
                mode="restore",
                size=self._disk.size,
                changed=0,
                read=self._to_write - self.found,
                zero=self._disk.size - self._to_write,
                known=self.found,
                new=0,
                stored=0,
                seconds=time.monotonic() - self._started,
            )
        )

    def _report(self) -> None:
        self._reported = time.monotonic()
        self._emit(
            DiskProgress(
                vm=self._vm,
                disk=self._disk.position,
                done=self._done,
                read=max(self._done - self.found, 0),
                zero=0,
                known=self.found,
                new=0,
                stored=0,
            )
        )
