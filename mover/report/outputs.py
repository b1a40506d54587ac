"""Where a job's `[report]` section sends what a run says, besides the terminal."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from mover.errors import ReportError
from mover.events import AnyEvent, Emit, Note
from mover.job import ReportSection
from mover.report import prometheus
from mover.report.jsonl import JsonLines
from mover.report.summary import Summary


@asynccontextmanager
async def reporting(section: ReportSection, job: str, emit: Emit) -> AsyncIterator[Emit]:
    """Yield what to send events to: they go to `emit` and the job's log, and their sum to its monitoring at the end.

    Raises `ReportError` at once if the log cannot be written; what fails at the end is a warning.
    """
    summary = Summary()
    views: list[Emit] = [emit]

    def send(event: AnyEvent) -> None:
        summary(event, time.time())
        for view in views:
            view(event)

    with ExitStack() as stack:
        if section.log:
            path = Path(section.log.replace("{job}", job))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                views.append(JsonLines(stack.enter_context(path.open("a"))))
            except OSError as error:
                raise ReportError(f"cannot write the log {path}: {error.strerror}", "mend [report] log") from error
        try:
            yield send
        finally:
            if section.prometheus:
                try:
                    prometheus.write(summary.value, Path(section.prometheus))
                except OSError as error:
                    send(Note(level="warning", message=f"cannot write {section.prometheus}: {error.strerror}"))
        if section.webhook:
            from mover.report.webhook import post

            problem = await post(summary.value, section.webhook)
            if problem:
                send(Note(level="warning", message=f"the webhook was not reached: {problem}"))
