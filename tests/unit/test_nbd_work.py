"""Which lanes take requests: all of them, or no more than there are processors where nobody has to wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from protocol.errors import NbdError
from protocol.extent import Extent
from protocol.nbd.plan import Observed, Planner
from protocol.nbd.work import Flight, Work

MiB = 1 << 20
LANES, PROCESSORS = 4, 2


def work_of(requests: int = 1000, *, stall: float = 60.0, processors: int = PROCESSORS) -> Work:
    planner = Planner([Extent(0, requests * 2 * MiB)], requests * 2 * MiB)
    return Work(planner, lanes=LANES, processors=processors, stall=stall, attempts=3, finished=lambda: None)


def pulled(work: Work, lane: int = 0) -> Flight:
    flight = work.pull(lane, Observed())
    assert flight is not None
    return flight


def answer(work: Work, times: int, *, waited: bool) -> None:
    for _ in range(times):
        assert work.claim(pulled(work), waited=waited)


def at_work(work: Work) -> list[int]:
    return [lane for lane in range(LANES) if work.waiting(lane)]


def test_all_lanes_begin() -> None:
    assert at_work(work_of()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("processors", "left"), [(1, 1), (2, 2), (3, 3), (4, 4), (16, 4)])
def test_where_answers_are_there_already_lanes_stand_back_down_to_the_processors(processors: int, left: int) -> None:
    work = work_of(processors=processors)
    answer(work, 100, waited=False)
    assert at_work(work) == list(range(left))
    assert work.pull(left - 1, Observed()) is not None
    assert left == LANES or work.pull(left, Observed()) is None


def test_where_answers_have_to_be_waited_for_nobody_stands_back() -> None:
    work = work_of()
    answer(work, 100, waited=True)
    assert at_work(work) == [0, 1, 2, 3]


def test_they_come_back_when_answers_have_to_be_waited_for() -> None:
    work = work_of()
    answer(work, 100, waited=False)
    with ThreadPoolExecutor() as threads:
        backs = [threads.submit(work.wait, lane) for lane in (2, 3)]
        answer(work, 100, waited=True)
        assert [back.result(10) for back in backs] == [True, True]
    assert at_work(work) == [0, 1, 2, 3]


def test_after_a_failure_all_are_at_work_and_stay_there() -> None:
    work = work_of()
    answer(work, 100, waited=False)
    lost = pulled(work)
    with ThreadPoolExecutor() as threads:
        backs = [threads.submit(work.wait, lane) for lane in (2, 3)]
        work.failed(lost, 0, NbdError("server", "gone"))
        assert [back.result(10) for back in backs] == [True, True]
    answer(work, 100, waited=False)
    assert at_work(work) == [0, 1, 2, 3]


def test_a_stall_calls_those_who_stand_back() -> None:
    work = work_of(stall=0.01)
    answer(work, 100, waited=False)
    pulled(work)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(work.wait, 3).result(10)
    assert work.pull(3, Observed()) is not None


def test_where_a_lane_has_lost_its_connection_nobody_stands_back() -> None:
    work = work_of(processors=1)
    answer(work, 100, waited=False)
    with ThreadPoolExecutor() as threads:
        backs = [threads.submit(work.wait, lane) for lane in (1, 2, 3)]
        work.all_hands()
        assert [back.result(10) for back in backs] == [True] * 3
    answer(work, 100, waited=False)
    assert at_work(work) == [0, 1, 2, 3]


@pytest.mark.parametrize("way", ["all done", "stopped"])
def test_those_who_stand_back_learn_of_the_end(way: str) -> None:
    work = work_of(120)
    answer(work, 119, waited=False)
    last = pulled(work)
    with ThreadPoolExecutor() as threads:
        backs = [threads.submit(work.wait, lane) for lane in (2, 3)]
        if way == "stopped":
            work.stop()
        else:
            assert work.claim(last, waited=False)
        assert [back.result(10) for back in backs] == [False, False]
