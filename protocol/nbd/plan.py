"""Which bytes to ask for next: dirty extents merged into requests where the gap costs less than another request.

The servers answer one request at a time per connection, so a request costs `latency + length / bandwidth`, whatever
else goes on. Reading a gap of `g` bytes along costs `g / bandwidth`, asking separately costs `latency`: two extents
are read as one where the gap is shorter than `latency * bandwidth`. Both numbers are taken from the requests of this
run, per host (`Observed`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.extent import Extent

MiB = 1 << 20
# So many short requests are asked for together at most: enough for what comes with them to cost little beside them.
TOGETHER = 16
_NEAR = 64  # so many extents, or some more, are at hand: the others may be made only when it is their turn
_SECTOR = 512  # xapi-nbd refuses what is not aligned to it (nbd lib/server.ml)


class Request(NamedTuple):
    """Read `length` bytes at `offset`; `wanted` are the parts of it that were asked for, in order."""

    offset: int
    length: int
    wanted: tuple[Extent, ...]


class Observed:
    """Latency (seconds) and bandwidth (bytes per second) of one host, per connection, as seen in this run.

    Latency is a low quantile over the latest requests, so that a busy client or one slow disk access is not taken for
    a slow network. Bandwidth is the median slope between requests of different lengths; until there are such, 100 MB/s
    is assumed, which makes the first merged requests short enough to be harmless and long enough to learn from. What
    a short answer took counts as latency meanwhile, as its bytes would on a fast network: of 2 ms for 256 KiB, 100 MB/s
    would leave nothing.
    """

    WINDOW = 64
    ENOUGH = 3
    # Two answers that both took longer than this (seconds) are no accident, and enough then.
    EVIDENT = 4e-3
    ASSUMED_BANDWIDTH = 100e6
    # Below this latency (seconds) merging saves nothing worth reading more than was asked for.
    NEGLIGIBLE = 0.5e-3
    # As long as a short answer's bytes are in it, or nearly all of them.
    NEGLIGIBLE_AT_FIRST = 1.5e-3
    SHORT = 256 << 10
    FAST = 1e9
    QUANTILE = 0.1
    _REFIT_EVERY = 8
    _LEVER = 128 << 10  # lengths that differ by less say little about bandwidth

    def __init__(self) -> None:
        self.latency = 0.0
        self.bandwidth = self.ASSUMED_BANDWIDTH
        self._samples: deque[tuple[int, float]] = deque(maxlen=self.WINDOW)
        self._count = 0
        self._negligible = self.NEGLIGIBLE
        self._measured = False
        self._lock = Lock()

    @property
    def known(self) -> bool:
        """Whether enough requests were seen to rely on."""
        return self._count >= self.ENOUGH or (self._count > 1 and self.latency >= self.EVIDENT)

    @property
    def gap(self) -> int:
        """The longest gap (bytes) that is cheaper to read than to leave out; 0 while nothing is known."""
        return int(self.latency * self.bandwidth) if self.known and not self.prompt else 0

    @property
    def prompt(self) -> bool:
        """Whether answers are known to come as soon as they are asked for: a request costs its bytes only."""
        return self.known and self.latency < self._negligible

    def expected(self, length: int) -> float:
        """How long (seconds) a request of `length` bytes should take."""
        return self.latency + length / self.bandwidth

    def add(self, length: int, seconds: float, *, exact: bool = True) -> None:
        """Record a completed request: its service time, that is, without the time it waited for those before it.

        One that is not `exact` took no longer than that, which says something only if it is less than expected. Any
        thread may call.
        """
        with self._lock:
            if not exact and self.known and seconds >= self.expected(length):
                return
            self._samples.append((length, seconds))
            self._count += 1
            if self._count <= 2 * self._REFIT_EVERY or self._count % self._REFIT_EVERY == 0:
                self._fit()

    def _fit(self) -> None:
        samples = list(self._samples)
        lengths = [length for length, _ in samples]
        # A disk that is read in full is read in requests of one length: nothing to compare.
        if max(lengths) - min(lengths) >= self._LEVER:
            slope = _slope(np.array(samples, dtype=np.float64), self._LEVER)
            if slope > 0:
                self.bandwidth = 1 / slope
                self._measured = True
        bandwidth, self._negligible = self.bandwidth, self.NEGLIGIBLE
        if not self._measured and (short := [sample for sample in samples if sample[0] <= self.SHORT]):
            samples, bandwidth, self._negligible = short, self.FAST, self.NEGLIGIBLE_AT_FIRST
        latencies = sorted(seconds - length / bandwidth for length, seconds in samples)
        self.latency = max(0.0, _quantile(latencies, self.QUANTILE))


def _slope(samples: npt.NDArray[np.float64], lever: int) -> float:
    """The median of what a byte more takes (seconds), among pairs of lengths that differ by `lever`; 0: unknown."""
    lengths, seconds = samples.T
    left, right = np.triu_indices(len(lengths), 1)
    difference = lengths[right] - lengths[left]
    apart = np.abs(difference) >= lever
    if apart.sum() < 2:
        return 0.0
    slopes = (seconds[right] - seconds[left])[apart] / difference[apart]
    # Not `np.median`, whose first call in a process takes longer than a small incremental can spare: 10 ms.
    return float(np.partition(slopes, len(slopes) // 2)[len(slopes) // 2])


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values, as numpy does it, which takes ten times as long for so few."""
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class Planner:
    """A shared iterator of requests over `extents` (sorted, not overlapping), pulled by whoever can take one more.

    No request is longer than `limit` bytes. An extent is cut only at multiples of the largest power of two that all
    extents are aligned to, so extents of whole chunks are delivered in whole chunks. Requests are aligned to sectors,
    and end at `size` at the latest. With `merge` off no byte is read that was not asked for (alignment apart).
    """

    def __init__(self, extents: Sequence[Extent], size: int, *, limit: int = 2 * MiB, merge: bool = True) -> None:
        if limit < _SECTOR or limit & (limit - 1):
            raise ValueError(f"the longest request must be a power of two from {_SECTOR} up, not {limit}")
        self._rest = iter(extents)
        self._near = list(islice(self._rest, _NEAR))  # the next ones: only empty if none is left
        self._left = len(extents)
        self._end = extents[-1].end if extents else 0
        self._size = size
        self._limit = limit
        self._merge = merge
        self._unit = max(_SECTOR, min(_alignment(extents), limit))
        self._position = 0
        self._returned: list[Request] = []

    @property
    def exhausted(self) -> bool:
        """Whether `next` has nothing to give (for now: requests may come back)."""
        return not self._returned and not self._near

    @property
    def left(self) -> int:
        """About how many requests are left: no more than there are extents, or stretches of `limit` bytes."""
        if not self._near:
            return len(self._returned)
        stretches = -(-(self._end - max(self._near[0].offset, self._position)) // self._limit)
        return len(self._returned) + (stretches if self._left == 1 else min(stretches, self._left))

    def give_back(self, request: Request) -> None:
        """A request that failed: somebody else gets it."""
        heapq.heappush(self._returned, request)

    def next(self, observed: Observed, share: int = 1) -> tuple[Request, ...]:
        """What a connection to a host that behaves as `observed` should ask for next; nothing if there is nothing left.

        Where requests are answered as soon as they are sent, up to `share` short ones are asked for together, so that
        dealing with what they bring is one step: no more bytes than one request may have.
        """
        if self._returned:
            return (heapq.heappop(self._returned),)
        requests: list[Request] = []
        room = self._limit
        most = min(share, TOGETHER) if observed.prompt else 1
        while len(requests) < max(1, most) and self._near:
            request, taken, position = self._ahead(observed)
            if request.length > room:
                break
            requests.append(request)
            room -= request.length
            self._position = position
            if taken == len(self._near):
                self._look_further()
            del self._near[:taken]
            self._left -= taken
        return tuple(requests)

    def _look_further(self) -> bool:
        """Have some more extents at hand; False if there are none."""
        more = list(islice(self._rest, _NEAR))
        self._near += more
        return bool(more)

    def _ahead(self, observed: Observed) -> tuple[Request, int, int]:
        """The request that comes next, how many extents it completes, and where the plan goes on after it."""
        gap = observed.gap if self._merge else 0
        near, index, position = self._near, 0, self._position
        start = max(near[0].offset, position) // _SECTOR * _SECTOR
        bound = (start + self._limit) // self._unit * self._unit
        wanted: list[Extent] = []
        while index < len(near) or self._look_further():
            extent = near[index]
            offset = max(extent.offset, position)
            if offset >= bound or (wanted and offset > wanted[-1].end + gap):
                break
            if wanted and offset > wanted[-1].end and self._saves_nothing(offset, extent.end, bound):
                break
            end = min(extent.end, bound)
            wanted.append(Extent(offset, end - offset))
            if end < extent.end:
                position = end
                break
            index += 1
        end = min(-(-wanted[-1].end // _SECTOR) * _SECTOR, self._size)
        return Request(start, end - start, tuple(wanted)), index, position

    def _saves_nothing(self, offset: int, end: int, bound: int) -> bool:
        """Whether an extent that is cut at `bound` needs as many requests after the cut as it would have uncut."""
        return -(-max(0, end - bound) // self._limit) >= -(-(end - offset) // self._limit)


def _alignment(extents: Sequence[Extent]) -> int:
    """The largest power of two that divides every offset and every end but the last (which may be the disk's)."""
    bits = 0
    end = 0
    for extent in extents:
        bits |= extent.offset | end
        end = extent.end
    return bits & -bits or 1 << 62
