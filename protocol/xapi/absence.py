"""A pool that was there and does not answer any more: since when, for all calls together."""

from __future__ import annotations


class Absence:
    """Told of each call that was answered or was not. Times are seconds of one monotonic clock.

    Failures more than `apart` seconds from each other are not of one absence: nobody asked in between.
    """

    def __init__(self, apart: float) -> None:
        self._apart = apart
        self._met = False
        self._since: float | None = None
        self._last = 0.0

    def answered(self) -> None:
        """The pool is there."""
        self._met = True
        self._since = None

    def failed(self, now: float) -> float | None:
        """It did not answer. Returns for how long it has been away, or None if it was never there."""
        if self._since is None or now - self._last > self._apart:
            self._since = now
        self._last = now
        return now - self._since if self._met else None
