"""The work of one read, as its lanes share it: what is left, what is in flight, what was delivered.

Lanes are threads; every method takes the lock, so no state is ever seen half changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from threading import Condition, RLock

from protocol.errors import NbdError
from protocol.nbd.plan import Observed, Planner, Request

# Of so many answers, at least so many not there yet call for one more lane at work, and at most so many for one less.
_ANSWERS = 16
_MANY, _FEW = 8, 4


class Flight:
    """Requests on their way together, on one connection or, when that one stalls, on two. `lanes` carry them."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.length = sum(request.length for request in requests)
        self.lanes: set[int] = set()
        self.stalled_at = 0.0


class Work:
    """Hands out requests, takes failed ones back, and sees to it that each is delivered exactly once.

    Short ones are handed out several at a time where the planner says so, up to an equal share of what is left. What is
    in flight for longer than `stall` seconds, and for longer than `_PATIENCE` times what is usual for its host, is
    given a second time to a lane that would be idle otherwise. `attempts` is how often one request may fail. `finished`
    is called once, by the lane that claims the last request.

    More lanes than processors only get in each other's way where answers are there before anybody waits for them. So
    lanes stand back then, down to `processors`, until others have to wait again, or stall, or anything fails.
    """

    _PATIENCE = 8.0

    def __init__(
        self,
        planner: Planner,
        *,
        lanes: int,
        processors: int,
        stall: float,
        attempts: int,
        finished: Callable[[], None],
    ) -> None:
        self.hedged = 0
        self.retried = 0
        self.bytes_read = 0
        self.requests = 0
        self._planner = planner
        self._lanes = lanes
        self._at_work = lanes
        self._least = min(processors, lanes)
        self._answers = 0
        self._waited = 0
        self._stall = stall
        self._attempts = attempts
        self._finished = finished
        self._flights: dict[int, Flight] = {}  # by offset; oldest first; without those that were claimed
        self._failures: dict[int, int] = {}
        self._stopped = False
        lock = RLock()
        self._changed = Condition(lock)
        self._called = Condition(lock)  # what those that stand back wait for

    @property
    def complete(self) -> bool:
        """Whether every request has been claimed: what is left is to deliver."""
        return self._planner.exhausted and not self._flights

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Nobody wants the rest: whoever waits is told that there is nothing left."""
        with self._changed:
            self._stopped = True
            self._call()

    def waiting(self, lane: int) -> bool:
        """Whether there is something for `lane` to carry right now."""
        with self._changed:
            return self._waiting(lane)

    def wait(self, lane: int) -> bool:
        """Block until there is something for `lane` to carry; False when all is done."""
        with self._changed:
            while not self.complete and not self._stopped:
                if self._waiting(lane):
                    return True
                stalled_at = min((flight.stalled_at for flight in self._foreign(lane)), default=None)
                left = None if stalled_at is None else max(0.0, stalled_at - time.monotonic())
                if lane < self._at_work:
                    self._changed.wait(left)
                else:
                    # What is asked for after now does not stall sooner than that.
                    self._called.wait(self._stall if left is None else left)
        return False

    def rest(self, seconds: float) -> bool:
        """Block for so long. False, and sooner, if nobody wants the rest any more."""
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, seconds)
        return not self._stopped

    def pull(self, lane: int, observed: Observed) -> Flight | None:
        """The next request for `lane`, or None if somebody else was faster."""
        with self._changed:
            if self._stopped or not self._waiting(lane):
                return None
            requests = self._planner.next(observed, self._planner.left // self._lanes)
            now = time.monotonic()
            if not requests:
                flight = next((flight for flight in self._foreign(lane) if flight.stalled_at <= now), None)
                if flight is None:
                    return None
                self.hedged += 1
            else:
                flight = self._flights[requests[0].offset] = Flight(requests)
            flight.lanes.add(lane)
            usual = sum(observed.expected(request.length) for request in flight.requests)
            flight.stalled_at = now + max(self._stall, self._PATIENCE * usual)
            self._changed.notify_all()  # idle lanes have to learn when it counts as stalled
            return flight

    def claim(self, flight: Flight, *, waited: bool) -> bool:
        """The bytes are here; they had to be waited for if `waited`.

        True for the first who says so: that one delivers them.
        """
        with self._changed:
            first = flight.requests[0].offset
            self.bytes_read += flight.length
            self.requests += len(flight.requests)
            self._count(waited)
            if self._flights.get(first) is not flight:
                return False
            del self._flights[first]
            last = self.complete
            if last:
                self._call()
            else:
                self._changed.notify_all()
        if last:
            self._finished()
        return True

    def all_hands(self) -> None:
        """Some lane has no connection, and may get none any more: nobody stands back from now on."""
        with self._changed:
            self._at_work = self._least = self._lanes
            self._call()

    def failed(self, flight: Flight, lane: int, error: NbdError) -> None:
        """`lane` could not carry it. Raises `error` if that happened too often to one of its requests.

        They come back one by one: if the server refuses one of them, the others are none the worse for it.
        """
        first = flight.requests[0].offset
        self.all_hands()
        with self._changed:
            flight.lanes.discard(lane)
            if flight.lanes or self._flights.get(first) is not flight:
                return
            for request in flight.requests:
                failures = self._failures[request.offset] = self._failures.get(request.offset, 0) + 1
                if failures >= self._attempts:
                    raise error
            self.retried += len(flight.requests)
            del self._flights[first]
            for request in flight.requests:
                self._planner.give_back(request)
            self._changed.notify_all()

    def _waiting(self, lane: int) -> bool:
        """The last requests are not queued behind another one on the same connection: others answer them sooner."""
        if not self._planner.exhausted and (lane < self._at_work or self._stalled(self._flights.values())):
            return self._planner.left > self._lanes or not any(
                lane in flight.lanes for flight in self._flights.values()
            )
        return self._stalled(self._foreign(lane))

    def _stalled(self, flights: Iterable[Flight]) -> bool:
        now = time.monotonic()
        return any(flight.stalled_at <= now for flight in flights)

    def _call(self) -> None:
        """Everybody has to look anew, those that stand back as well."""
        self._changed.notify_all()
        self._called.notify_all()

    def _count(self, waited: bool) -> None:
        """Every so many answers, have one lane more at work or one less."""
        self._answers += 1
        self._waited += waited
        if self._answers == _ANSWERS:
            if self._waited >= _MANY:
                self._at_work = min(self._at_work + 1, self._lanes)
                self._call()
            elif self._waited <= _FEW:
                self._at_work = max(self._at_work - 1, self._least)
            self._answers = self._waited = 0

    def _foreign(self, lane: int) -> list[Flight]:
        """What others carry and nobody else helps with."""
        return [flight for flight in self._flights.values() if len(flight.lanes) == 1 and lane not in flight.lanes]
