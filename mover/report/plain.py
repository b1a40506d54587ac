"""One line for everything worth saying: for logs, cron mail and pipes."""

from __future__ import annotations

from typing import TextIO

from mover.events import AnyEvent
from mover.report.sentences import Sentences


class PlainLines:
    """Writes sentences, without progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._sentences = Sentences()

    def __call__(self, event: AnyEvent) -> None:
        if line := self._sentences.of(event):
            self._stream.write(line + "\n")
            self._stream.flush()
