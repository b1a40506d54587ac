"""Which view shows a run: bars on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TextIO

from mover.events import AnyEvent, Emit

Progress = Literal["auto", "plain", "json", "none"]


@contextmanager
def open_view(progress: Progress, stream: TextIO) -> Iterator[Emit]:
    """A context whose value takes events. `auto` is bars if `stream` is a terminal, plain lines otherwise."""
    with _view(progress, stream) as view:
        yield surviving(view, _ignore)


def surviving(view: Emit, failed: Callable[[OSError], None]) -> Emit:
    """`view` until it cannot write, then nothing: no work ends because a pipe was closed or a log's disk is full."""
    working = True

    def show(event: AnyEvent) -> None:
        nonlocal working
        if working:
            try:
                view(event)
            except OSError as error:
                working = False
                failed(error)

    return show


def _view(progress: Progress, stream: TextIO) -> AbstractContextManager[Emit]:
    if progress == "json":
        from mover.report.jsonl import JsonLines

        return nullcontext(JsonLines(stream))
    if progress == "none":
        return nullcontext(_ignore)
    if progress == "auto" and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        from mover.report.bars import Bars

        return Bars(stream)
    from mover.report.plain import PlainLines

    return nullcontext(PlainLines(stream))


def _ignore(what: object) -> None:
    """Do nothing with it."""
    del what
