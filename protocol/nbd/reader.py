"""Reads extents of one disk over several NBD connections.

Pull, not push: every connection is a lane, a task that keeps it open and a thread that carries. The thread takes a slot
of the arena and the next request from the shared plan, waits for the answer, deals with the block, and comes back: what
was received is hashed and compressed where it is, and no block waits for the event loop. A slow connection takes fewer
requests, a dead one gives back what it had and is opened anew, a stalled one is overtaken at the end.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, TypeVarTuple

from protocol.arena import Arena
from protocol.block import Block
from protocol.errors import (
    NbdCertificateError,
    NbdConnectError,
    NbdError,
    NbdNowhereError,
    NbdRequestError,
    ProtocolError,
)
from protocol.extent import Extent
from protocol.nbd.budget import Budget, Lease
from protocol.nbd.connection import Connection, Read, connect
from protocol.nbd.endpoint import Endpoint, Timeouts
from protocol.nbd.plan import Observed, Planner, Request
from protocol.nbd.terms import Patience, ReadStats, Retry
from protocol.nbd.work import Flight, Work
from protocol.tasks import interruptible, task_group

Locate = Callable[[], Awaitable[Sequence[Endpoint]]]
# Deals with blocks that came together, in a thread of their lane; the views may be reused when it returns.
Take = Callable[[Sequence[Block]], None]
# How many seconds to wait before a block of so many bytes may be dealt with.
Pace = Callable[[int], float]

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


@dataclass(slots=True)
class _Seat:
    """Room for one connection.

    Only the event loop puts one in, looks at it and closes it; a lane's thread is handed the one it carries with. So
    none is closed while somebody else looks at it.
    """

    connection: Connection | None = None
    lease: Lease | None = None
    failures: int = 0

    def live(self) -> Connection | None:
        return None if self.connection is None or self.connection.closed else self.connection

    def clear(self) -> None:
        """Close the connection, which no thread may be using any more, and leave its place at the host to others."""
        if self.connection is not None:
            self.connection.close()
        if self.lease is not None:
            self.lease.release()
        self.connection = self.lease = None


@dataclass(slots=True)
class _Directory:
    """The endpoints of the disk, and which to try next: those that failed least, on the host that is used least."""

    locate: Locate
    endpoints: Sequence[Endpoint] = ()
    failures: dict[tuple[str, int], int] = field(default_factory=dict)

    async def refresh(self) -> None:
        self.endpoints = await self.locate()
        if not self.endpoints:
            raise NbdNowhereError

    def choose(self, busy: Sequence[Endpoint]) -> Endpoint:
        def burden(endpoint: Endpoint) -> tuple[int, int]:
            failures = self.failures.get((endpoint.address, endpoint.port), 0)
            return failures, sum(other.host == endpoint.host for other in busy)

        return min(self.endpoints, key=burden)

    def note(self, endpoint: Endpoint, *, failed: bool) -> None:
        key = (endpoint.address, endpoint.port)
        self.failures[key] = self.failures.get(key, 0) + 1 if failed else 0


class NbdReader:
    """Made by `open_reader`. One `read` at a time."""

    def __init__(
        self,
        locate: Locate,
        connections: int,
        depth: int,
        budget: Budget,
        timeouts: Timeouts,
        patience: Patience,
        observed: MutableMapping[str, Observed],
        on_retry: Callable[[Retry], None] | None,
    ) -> None:
        self.size = 0
        self._directory = _Directory(locate)
        self._seats = [_Seat() for _ in range(connections)]
        self._depth = depth
        self._budget = budget
        self._timeouts = timeouts
        self._patience = patience
        self._observed = observed
        self._on_retry = on_retry
        self._attaching = asyncio.Lock()
        self._threads = ThreadPoolExecutor(connections, "nbd")

    async def read(
        self,
        extents: Sequence[Extent],
        arena: Arena,
        take: Take,
        *,
        merge_gaps: bool = True,
        pace: Pace = lambda size: 0.0,
    ) -> ReadStats:
        """Read `extents` (sorted, not overlapping, within `size`) and call `take` with every block, in any order.

        Every wanted byte is given to `take` exactly once; blocks of short requests come several at a time. `take` is
        called in several threads at once; the views may be reused when it returns. If it raises, the read ends with
        that error. What is asked for at once is as long as a slot of `arena` at most; with `merge_gaps` short gaps
        between extents are read along where that is faster. `pace` holds a lane back.

        Raises `NbdConnectError` when no connection is left, `NbdRequestError` when the server refuses a read again
        and again, `NbdCertificateError` when a server shows another certificate than expected.
        """
        if extents and extents[-1].end > self.size:
            raise ValueError(f"the disk has {self.size} bytes, and byte {extents[-1].end} was asked for")
        planner = Planner(extents, self.size, limit=_power_of_two(arena.slot_size), merge=merge_gaps)
        return await _Run(self, planner, arena, take, pace).run()

    async def open_first(self) -> None:
        """Open the connection that tells the disk's size, trying as often as allowed."""
        seat = self._seats[0]
        await self._directory.refresh()
        while True:
            try:
                self.size = (await self._open(seat)).size
                return
            except NbdError as error:
                await self._pause_after(seat, error)

    async def _open(self, seat: _Seat) -> Connection:
        """Open one connection for an empty seat. Raises `NbdError` if that fails."""
        if seat.failures:
            await self._locate_again()
        busy = [connection.endpoint for other in self._seats if (connection := other.live())]
        endpoint = self._directory.choose(busy)
        lease = await self._budget.acquire(endpoint.host, self._timeouts.slot, first=not busy)
        try:
            connection = await connect(endpoint, self._timeouts, self._threads)
            if self.size and connection.size != self.size:
                connection.close()
                raise NbdConnectError(endpoint.server, f"the export has {connection.size} bytes instead of {self.size}")
        except BaseException as error:
            lease.release()
            self._directory.note(endpoint, failed=isinstance(error, NbdError))
            raise
        self._directory.note(endpoint, failed=False)
        seat.connection, seat.lease = connection, lease
        return connection

    async def _locate_again(self) -> None:
        """Ask for the endpoints anew. A pool that does not answer right now is one more failure of this kind."""
        try:
            await self._directory.refresh()
        except NbdError:
            raise
        except ProtocolError as error:
            if not error.transient:
                raise
            raise NbdConnectError("(none)", f"where the disk is cannot be found out: {error}") from error

    async def _pause_after(self, seat: _Seat, error: NbdError) -> None:
        """Wait before the next try at this seat. Raises `error` if there must not be one."""
        seat.failures += 1
        if isinstance(error, NbdCertificateError) or seat.failures >= self._patience.tries:
            raise error
        pause = self._patience.pause(seat.failures)
        if self._on_retry is not None:
            self._on_retry(Retry(error.server, error.reason, seat.failures, pause))
        await asyncio.sleep(pause)

    def close(self) -> None:
        """Close all connections."""
        for seat in self._seats:
            seat.clear()
        self._threads.shutdown()


class _Carried(NamedTuple):
    """Requests on their way into a slot, one behind the other."""

    flight: Flight
    slot: memoryview
    reads: Sequence[Read]


class _Run:
    """One call of `NbdReader.read`."""

    def __init__(self, reader: NbdReader, planner: Planner, arena: Arena, take: Take, pace: Pace) -> None:
        self._reader = reader
        self._arena = arena
        self._take = take
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._asking: dict[int, Future[memoryview]] = {}
        self._given_up = 0
        patience = reader._patience
        self._work = Work(
            planner,
            lanes=len(reader._seats),
            processors=len(os.sched_getaffinity(0)),
            stall=patience.stall,
            attempts=patience.attempts,
            finished=self._finished,
        )

    async def run(self) -> ReadStats:
        work = self._work
        if not work.complete:
            try:
                async with task_group() as lanes:
                    for lane, seat in enumerate(self._reader._seats):
                        seat.failures = 0
                        lanes.create_task(self._lane(lane, seat))
            finally:
                self._clear_dead()  # of lanes that were cancelled; their threads are done
        return ReadStats(work.bytes_read, work.requests, work.retried, work.hedged)

    def _finished(self) -> None:
        """All bytes are here, says a lane's thread; the connections of other lanes are the event loop's."""
        self._loop.call_soon_threadsafe(self._dispense)

    def _dispense(self) -> None:
        """Nobody needs another connection any more, nor an answer that was overtaken."""
        for task in self._connecting:
            task.cancel()
        for seat in self._reader._seats:
            if (connection := seat.live()) and connection.in_flight:
                connection.abort(NbdError(connection.endpoint.server, "overtaken by another connection"))

    def _clear_dead(self) -> None:
        for seat in self._reader._seats:
            if seat.live() is None:
                seat.clear()

    async def _lane(self, lane: int, seat: _Seat) -> None:
        """Keep one connection open and at work, until all is done or its tries are used up."""
        while await self._in_thread(lane, seat, self._work.wait, lane):
            try:
                with self._dispensable():
                    await self._connect(lane, seat)
                failure = None
            except NbdError as error:
                failure = error
            if connection := seat.live():
                failure = await self._in_thread(lane, seat, self._carry, lane, seat, connection)
                if failure is not None:
                    self._reader._directory.note(connection.endpoint, failed=True)
                    # Before this lane waits for anything: whoever opens a connection may be waiting for this place.
                    seat.clear()
            if failure is not None and not self._work.complete:
                self._work.all_hands()
                try:
                    with self._dispensable():
                        await self._reader._pause_after(seat, failure)
                except NbdError as error:
                    self._give_up(error)
                    return

    async def _in_thread(
        self, lane: int, seat: _Seat, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Let the lane's thread work. If the lane is cancelled, it stops waiting for whatever it waits for."""

        def interrupt() -> None:
            self._work.stop()
            if seat.connection is not None:
                seat.connection.abort(NbdError(seat.connection.endpoint.server, "closed because a read was cancelled"))
            if asking := self._asking.get(lane):
                asking.cancel()

        return await interruptible(self._reader._threads, interrupt, work, *arguments)

    async def _connect(self, lane: int, seat: _Seat) -> None:
        """Open the seat's connection, one seat after the other, unless there is nothing left for it by then."""
        if seat.live() is None:
            async with self._reader._attaching:
                if self._work.waiting(lane):
                    await self._reader._open(seat)

    def _carry(self, lane: int, seat: _Seat, connection: Connection) -> NbdError | None:
        """In the lane's thread: read and deliver one request after the other. Returns what ended the connection.

        A second request keeps the server busy while the first one's block is being dealt with. It is sent after the
        first answer: until then the plan knows too little of the host to make good requests.
        """
        observed = self._reader._observed.setdefault(connection.endpoint.host, Observed())
        on_the_way: deque[_Carried] = deque()
        depth = self._reader._depth if observed.known else 1
        try:
            while not connection.closed:
                while len(on_the_way) < depth and (carried := self._ask(lane, connection, observed, bool(on_the_way))):
                    on_the_way.append(carried)
                if on_the_way:
                    if self._answer(lane, connection, observed, on_the_way):
                        seat.failures = 0
                        depth = self._reader._depth
                elif not self._work.wait(lane):
                    break
        except NbdError as error:
            if error is not connection.error:
                raise
        finally:
            if on_the_way:
                connection.abort(NbdError(connection.endpoint.server, "a read was abandoned"))
            for carried in on_the_way:
                self._arena.release(carried.slot)
        if connection.error is not None:
            for carried in on_the_way:
                self._work.failed(carried.flight, lane, connection.error)
        return connection.error

    def _ask(self, lane: int, connection: Connection, observed: Observed, more: bool) -> _Carried | None:
        """Send the next request, if there is one for this lane; `more` than one at a time only with a slot to spare."""
        if not self._work.waiting(lane):
            return None
        slot = self._arena.spare() if more else self._slot(lane)
        if slot is None:
            return None
        flight = self._work.pull(lane, observed)
        if flight is not None:
            return _Carried(flight, slot, list(_submitted(connection, flight.requests, slot)))
        self._arena.release(slot)
        return None

    def _slot(self, lane: int) -> memoryview | None:
        """Wait for a slot; None if all is over meanwhile."""
        asking = self._asking[lane] = self._arena.request()
        if self._work.stopped:
            asking.cancel()
        try:
            return asking.result()
        except CancelledError:
            return None

    def _answer(self, lane: int, connection: Connection, observed: Observed, on_the_way: deque[_Carried]) -> bool:
        """Wait for what was asked for first and deliver it. False if the server answered with an error."""
        flight, slot, reads = on_the_way[0]
        waited, failure = False, None
        for read in reads:
            try:
                service = connection.wait(read)
            except NbdRequestError as error:
                failure = error  # the others are being received into the same slot
            else:
                observed.add(len(read.view), service.seconds, exact=service.exact)
                waited = waited or service.waited
        on_the_way.popleft()
        try:
            if failure is not None:
                self._work.failed(flight, lane, failure)
            elif self._work.claim(flight, waited=waited) and self._work.rest(self._pace(flight.length)):
                together = zip(flight.requests, reads, strict=True)
                self._take([Block(request.offset, read.view, request.wanted) for request, read in together])
        finally:
            self._arena.release(slot)
        return failure is None

    def _give_up(self, error: NbdError) -> None:
        """One seat will not be tried again. Raises when it was the last, or when the certificate is wrong."""
        if isinstance(error, NbdCertificateError):
            raise error
        self._given_up += 1
        if self._given_up == len(self._reader._seats):
            reason = f"no connection is left; the last one failed: {error.reason}"
            raise NbdConnectError(error.server, reason) from error

    @contextmanager
    def _dispensable(self) -> Iterator[None]:
        """Mark the current task as one to cancel when all is done."""
        task = asyncio.current_task()
        assert task is not None
        self._connecting.add(task)
        try:
            yield
        finally:
            self._connecting.discard(task)


def _submitted(connection: Connection, requests: Sequence[Request], slot: memoryview) -> Iterator[Read]:
    """Ask for all of them, each into its part of the slot."""
    start = 0
    for request in requests:
        yield connection.submit(slot[start : start + request.length], request.offset)
        start += request.length


def _power_of_two(limit: int) -> int:
    """The largest power of two up to `limit`."""
    return 1 << (limit.bit_length() - 1)


@asynccontextmanager
async def open_reader(
    locate: Locate,
    *,
    connections: int = 4,
    depth: int = 2,
    budget: Budget,
    timeouts: Timeouts | None = None,
    patience: Patience | None = None,
    observed: MutableMapping[str, Observed] | None = None,
    on_retry: Callable[[Retry], None] | None = None,
) -> AsyncIterator[NbdReader]:
    """Open a disk: yields an `NbdReader` with one connection open.

    `locate` names the endpoints; it is asked again before every reconnection, since sessions expire. Up to
    `connections` connections are used, spread over the hosts, each with up to `depth` requests on their way or being
    dealt with. `observed` holds what is known of the hosts' speed; share it between disks, as the `budget`.

    Raises `NbdConnectError` if no connection can be made, `NbdCertificateError` if a certificate is wrong, and what
    `locate` raises.
    """
    reader = NbdReader(
        locate,
        connections,
        depth,
        budget,
        timeouts or Timeouts(),
        patience or Patience(),
        {} if observed is None else observed,
        on_retry,
    )
    try:
        await reader.open_first()
        yield reader
    finally:
        reader.close()
