"""What goes in and out of a read, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What a read cost: bytes and requests that were answered, requests re-issued after a failure (`retried`) or given
    to a second connection because the first did not answer (`hedged`)."""

    bytes_read: int
    requests: int
    retried: int
    hedged: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Something failed and is tried again in `pause` seconds; `attempt` counts from 1."""

    server: str
    reason: str
    attempt: int
    pause: float


@dataclass(frozen=True, slots=True)
class Patience:
    """How much failure is put up with.

    A connection is given up after `tries` failures in a row without a single answer in between, with pauses from
    `first_pause` doubling to `longest_pause` seconds. One request may fail `attempts` times. A request that takes
    longer than `stall` seconds is given to an idle connection as well.
    """

    tries: int = 6
    first_pause: float = 0.25
    longest_pause: float = 10.0
    attempts: int = 8
    stall: float = 1.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row."""
        return min(self.first_pause * 2.0 ** (failures - 1), self.longest_pause)
