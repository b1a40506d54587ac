"""The work of one read, as its carriers share it: what is left, what is in flight, what was delivered.

Every method but `available` is plain code without an await inside, so no state is ever half changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from protocol.errors import NbdError
from protocol.nbd.plan import Observed, Planner, Request


class Flight:
    """A request on its way, on one connection or, when that one stalls, on two. `lanes` are those that carry it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.lanes: set[int] = set()
        self.stalled_at = 0.0


class Work:
    """Hands out requests, takes failed ones back, and sees to it that each is delivered exactly once.

    A request that is in flight for longer than `stall` seconds, and for longer than `_PATIENCE` times what is usual for
    its host, is given a second time to a lane that would be idle otherwise. `attempts` is how often one request may
    fail. `finished` is called once, when every request has been claimed.
    """

    _PATIENCE = 8.0

    def __init__(
        self, planner: Planner, *, lanes: int, stall: float, attempts: int, finished: Callable[[], None]
    ) -> None:
        self.hedged = 0
        self.retried = 0
        self._planner = planner
        self._lanes = lanes
        self._stall = stall
        self._attempts = attempts
        self._finished = finished
        self._flights: dict[int, Flight] = {}  # by offset; oldest first; without those that were claimed
        self._failures: dict[int, int] = {}
        self._idle: set[asyncio.Future[None]] = set()
        self._settle()

    @property
    def complete(self) -> bool:
        """Whether every request has been claimed: what is left is to deliver."""
        return self._planner.exhausted and not self._flights

    def waiting(self, lane: int) -> bool:
        """Whether there is something for `lane` to carry right now.

        The last requests are not queued behind another one on the same connection: other lanes answer them sooner.
        """
        if not self._planner.exhausted:
            return self._planner.left > self._lanes or not any(
                lane in flight.lanes for flight in self._flights.values()
            )
        now = time.monotonic()
        return any(flight.stalled_at <= now for flight in self._foreign(lane))

    async def available(self, lane: int) -> bool:
        """Wait until there is something for `lane` to carry; False when all is done."""
        while not self.complete:
            if self.waiting(lane):
                return True
            stalled_at = min((flight.stalled_at for flight in self._foreign(lane)), default=None)
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.add(changed)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if stalled_at is None else stalled_at - time.monotonic()):
                        await changed
            finally:
                self._idle.discard(changed)
        return False

    def pull(self, lane: int, observed: Observed) -> Flight | None:
        """The next request for `lane`, or None if somebody else was faster."""
        if not self.waiting(lane):
            return None
        request = self._planner.next(observed)
        now = time.monotonic()
        if request is None:
            flight = next((flight for flight in self._foreign(lane) if flight.stalled_at <= now), None)
            if flight is None:
                return None
            self.hedged += 1
        else:
            flight = self._flights[request.offset] = Flight(request)
        flight.lanes.add(lane)
        flight.stalled_at = now + max(self._stall, self._PATIENCE * observed.expected(flight.request.length))
        self._wake()  # idle lanes have to learn when it counts as stalled
        return flight

    def claim(self, flight: Flight) -> bool:
        """The bytes are here. True for the first who says so: that one delivers them."""
        if self._flights.get(flight.request.offset) is not flight:
            return False
        del self._flights[flight.request.offset]
        self._settle()
        self._wake()
        return True

    def failed(self, flight: Flight, lane: int, error: NbdError) -> None:
        """`lane` could not carry it. Raises `error` if that happened too often to this request."""
        offset = flight.request.offset
        flight.lanes.discard(lane)
        if flight.lanes or self._flights.get(offset) is not flight:
            return
        self._failures[offset] = self._failures.get(offset, 0) + 1
        if self._failures[offset] >= self._attempts:
            raise error
        self.retried += 1
        del self._flights[offset]
        self._planner.give_back(flight.request)
        self._wake()

    def _foreign(self, lane: int) -> list[Flight]:
        """What others carry and nobody else helps with."""
        return [flight for flight in self._flights.values() if len(flight.lanes) == 1 and lane not in flight.lanes]

    def _settle(self) -> None:
        if self.complete:
            self._finished()

    def _wake(self) -> None:
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
