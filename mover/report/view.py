"""Which view shows a run: bars on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TextIO

from mover.events import AnyEvent, Emit

Progress = Literal["auto", "plain", "json", "none"]


def open_view(progress: Progress, stream: TextIO) -> AbstractContextManager[Emit]:
    """A context whose value takes events. `auto` is bars if `stream` is a terminal, plain lines otherwise."""
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


def _ignore(event: AnyEvent) -> None:
    """Show nothing."""
    del event
