"""What a connection reads through: libnbd in the clear, our own few lines in TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class WireLostError(Exception):
    """The connection is gone, or makes no sense. The text says how; it may quote the export's name."""


class Wire(Protocol):
    """An export that is open, used by one thread at a time. All raise `WireLostError`."""

    size: int

    def ask(self, view: memoryview, offset: int, answered: Callable[[int], None]) -> None:
        """Send a read of `len(view)` bytes at `offset`.

        `advance` fills `view`, and calls `answered` with 0 or the server's errno when that is done. Raises `ValueError`
        for what lies beyond the end: nothing is sent then.
        """
        ...

    def advance(self, timeout: float) -> bool:
        """Deal with what has arrived, after waiting for it at most `timeout` seconds. False if nothing has."""
        ...

    def close(self) -> None:
        """Say good-bye if nothing is on its way, and close. Views are not touched any more."""
        ...


def milliseconds(seconds: float) -> int:
    """As poll(2) wants them: not less than `seconds`."""
    return -int(-seconds * 1000 // 1)
