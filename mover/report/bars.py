"""A bar per disk on a terminal, sentences above them, and a table at the end of a run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mover.events import (
    AnyEvent,
    DiskFinished,
    DiskPlanned,
    DiskProgress,
    RunFinished,
    VerifyProgress,
    VmFinished,
    VmStarted,
)
from mover.printable import printable
from mover.report.sentences import Sentences
from mover.report.summary import Summary
from mover.report.table import summary_table


class Bars:
    """A context manager; its value takes events."""

    def __init__(self, stream: TextIO) -> None:
        self._sentences = Sentences()
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=5,
        )
        self._names: dict[str, str] = {}
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._summary = Summary()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: AnyEvent) -> None:
        line = self._sentences.of(event)
        self._summary(event, time.time())
        match event:
            case VmStarted():
                self._names[event.vm] = event.name
            case DiskPlanned():
                self._drop((event.vm, event.disk))  # a disk may be planned anew, where a first plan was refused
                label = printable(f"{self._names.get(event.vm, event.vm)}/{event.disk} {event.mode}")
                self._tasks[event.vm, event.disk] = self._progress.add_task(label, total=event.to_read)
            case DiskProgress():
                self._advance((event.vm, event.disk), event.done)
            case DiskFinished():
                self._drop((event.vm, event.disk))
            case VmFinished():
                for key in [key for key in self._tasks if key[0] == event.vm]:
                    self._drop(key)
            case VerifyProgress():
                key = ("", "verify")
                if key not in self._tasks:
                    self._tasks[key] = self._progress.add_task("verify", total=event.total)
                self._advance(key, event.done)
            case RunFinished() if self._summary.value.vms:
                self._console.print(summary_table(self._summary.value))
            case _:
                pass
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _advance(self, key: tuple[str, str], done: int) -> None:
        if key in self._tasks:
            self._progress.update(self._tasks[key], completed=done)

    def _drop(self, key: tuple[str, str]) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            self._progress.remove_task(task)
