"""Run a verb on the event loop: signals in, errors as messages and exit codes out."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

import uvloop

from mover.errors import MoverError, ReportError
from mover.failure import as_mover_error
from mover.malloc import keep_freed_memory
from mover.printable import printable_lines
from protocol.tasks import first_error

# The module of each verb has a coroutine function `main(options) -> exit code`.
_MODULES = {
    "run": "mover.cli.run",
    "check": "mover.cli.check",
    "explain": "mover.cli.explain",
    "list": "mover.cli.points",
    "show": "mover.cli.points",
    "restore": "mover.cli.restore",
    "serve": "mover.cli.serve",
    "verify": "mover.cli.verify",
    "prune": "mover.cli.prune",
    "repair": "mover.cli.repair",
    "copy": "mover.cli.copy",
    "report": "mover.cli.report",
    "units": "mover.cli.units",
    "key": "mover.cli.key",
    "simulate": "mover.cli.simulate",
    "demo": "mover.cli.demo",
}
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Written without a buffer: a signal may come in the middle of another write.
_STOPPING = b"stopping: cleaning up; once more to stop at once\n"


def run(options: argparse.Namespace) -> int:
    """Run `options.verb` and return its exit code."""
    received: list[int] = []
    keep_freed_memory()
    try:
        with _one_blas_thread():
            verb: Callable[[argparse.Namespace], Awaitable[int]] = import_module(_MODULES[options.verb]).main
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_interruptible(verb, options, received))
    except (asyncio.CancelledError, KeyboardInterrupt):
        warned = getattr(options, "warned", False)
        say("interrupted; what is left is among the warnings" if warned else "interrupted; everything is left clean")
        return 128 + received[0] if received else 130
    except BrokenPipeError:
        # Whoever read our output has had enough.
        _let_go_of_stdout()
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: everything else is a bug
        return _explain(error)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """numpy is imported within: it would start a thread for each processor, which spin for nothing to do for a while.

    Only indexes and bitmaps are looked at with it. Commands that are run later get the environment as it was.
    """
    chosen = _BLAS_THREADS in os.environ
    os.environ.setdefault(_BLAS_THREADS, "1")
    try:
        yield
    finally:
        if not chosen:
            del os.environ[_BLAS_THREADS]


async def _interruptible(
    verb: Callable[[argparse.Namespace], Awaitable[int]], options: argparse.Namespace, received: list[int]
) -> int:
    """Run a verb; the first signal cancels it, which cleans up; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def stop(number: int, frame: object) -> None:
        """Called by the interpreter, so that a second signal works even while something blocks the event loop."""
        del frame
        if received:
            os._exit(128 + number)
        received.append(number)
        os.write(2, _STOPPING)
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        return await verb(options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: Exception) -> int:
    cause = first_error(error)
    expected = as_mover_error(cause)
    if expected is None:
        traceback.print_exception(error, file=sys.stderr)
        say("error: this is a bug; please report it with the trace above")
        return MoverError.exit_code
    say(printable_lines(f"error: {expected}"))
    for note in getattr(cause, "__notes__", ()):
        say(printable_lines(note))
    if expected.hint:
        say(printable_lines(f"hint: {expected.hint}"))
    return expected.exit_code


def say(message: str) -> None:
    """Say something to the person at the terminal or to the log: on stderr, if it is still open."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def show(result: str) -> None:
    """Print a line of results on stdout. A reader that has had enough changes nothing, the exit code neither.

    Raises `ReportError` if the line cannot be written for another reason.
    """
    try:
        print(result, flush=True)
    except BrokenPipeError:
        _let_go_of_stdout()
    except OSError as error:
        _let_go_of_stdout()
        raise ReportError(f"cannot write to stdout: {error.strerror}") from error


def _let_go_of_stdout() -> None:
    """Send what is still to be written nowhere: otherwise the interpreter fails on it again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
