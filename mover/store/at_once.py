"""Several requests at once, where the back end is far away."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mover.store.backend import Tuning

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once(tuning: Tuning, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`work` on each item, on as many at once as pays off; results in order. The first failure is raised."""
    if tuning.requests == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(tuning.requests, "mover-requests") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * tuning.requests:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
