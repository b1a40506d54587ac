"""Where a job's `[report]` section sends what a run says, besides the terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TextIO

from mover.errors import BusyError, InterruptedRunError, MoverError, ReportError
from mover.events import AnyEvent, Emit, Note, RunFinished
from mover.failure import as_mover_error
from mover.job import ReportSection
from mover.report import prometheus
from mover.report.jsonl import JsonLines
from mover.report.summary import RunSummary, Summary
from mover.report.view import surviving
from protocol.tasks import first_error

# Somebody waits at the terminal, or the machine is going down.
_HURRY = 3.0


@asynccontextmanager
async def reporting(section: ReportSection, job: str, emit: Emit) -> AsyncIterator[Emit]:
    """Yield what to send events to: they go to `emit` and the job's log, and their sum to its monitoring at the end.

    The end is told however it comes: a run that fails as a whole, or is interrupted, gets its `RunFinished` here. One
    that meets another run of the job leaves the metrics alone.
    Raises `ReportError` at once if the log cannot be written; what fails later is a warning.
    """
    started = time.monotonic()
    ran = True
    summary = Summary(job)
    views: list[Emit] = [emit]

    def send(event: AnyEvent) -> None:
        summary(event, time.time())
        for view in views:
            view(event)

    def warn(what: str, problem: object) -> None:
        send(Note(level="warning", message=f"{what}: {problem}"))

    with ExitStack() as stack:
        if section.log:
            path = Path(section.log.replace("{job}", job))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("a")
            except OSError as error:
                raise ReportError(f"cannot write the log {path}: {error.strerror}", "mend [report] log") from error
            stack.callback(_close, file)
            views.append(surviving(JsonLines(file), lambda error: warn(f"the log {path} ends here", error.strerror)))
        try:
            yield send
        except BaseException as error:
            ran = not isinstance(first_error(error), BusyError)
            if not summary.value.finished:
                send(_end(summary.value, error, time.monotonic() - started))
            raise
        finally:
            # The last run's figures stay while another one is active: one that hangs would seem to end all the time.
            if section.prometheus and ran:
                try:
                    prometheus.write(summary.value, Path(section.prometheus))
                except OSError as error:
                    warn(f"cannot write {section.prometheus}", error.strerror)
            if section.webhook:
                # Imported here: a client of HTTP is a lot for a job that calls none.
                from mover.report.webhook import post

                hurry = summary.value.outcome == "interrupted"
                problem = await (
                    post(summary.value, section.webhook, _HURRY) if hurry else post(summary.value, section.webhook)
                )
                if problem:
                    warn("the webhook was not reached", problem)


def _close(file: TextIO) -> None:
    """What could not be written is tried again here; it has been complained of."""
    with suppress(OSError):
        file.close()


def _end(so_far: RunSummary, error: BaseException, seconds: float) -> RunFinished:
    """The end of a run that raised `error`."""
    interrupted = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
    cause = first_error(error)
    expected = as_mover_error(cause)
    unexpected = InterruptedRunError.exit_code if interrupted else MoverError.exit_code
    return RunFinished(
        run=so_far.run,
        outcome="interrupted" if interrupted else "failed",
        exit_code=expected.exit_code if expected else unexpected,
        seconds=seconds,
        read=sum(vm.read for vm in so_far.vms.values()),
        stored=sum(vm.stored for vm in so_far.vms.values()),
        error="interrupted" if interrupted else str(expected or f"unexpected {type(cause).__name__}: {cause}"),
        hint=(expected.hint or None) if expected else None,
    )
