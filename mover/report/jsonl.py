"""Events as JSON lines, for programs: docs/events.md describes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

import msgspec

from mover.events import AnyEvent

VERSION = 1


class JsonLines:
    """Writes each event as one line: `v`, `time` (Unix seconds), `type`, and the event's own fields."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock

    def __call__(self, event: AnyEvent) -> None:
        fields = {"v": VERSION, "time": round(self._clock(), 3)} | msgspec.to_builtins(event)
        self._stream.write(msgspec.json.encode(fields).decode() + "\n")
        self._stream.flush()
