"""Users of one store as a state machine: hypothesis begins writers, forgetting and prunes, lets each go on for some
calls, kills them, and sets their clocks; at any moment every point restores, and at the end nothing is left behind.

The wall clocks of two users differ by up to a day. A prune's own clock runs a tenth to a hundred times as fast as it
should: who is given up for that can lose its time only.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Condition
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mover.errors import StoreDamagedError
from mover.store import Store, config, lease, names, pack_writer, prune
from mover.store.reach import Reach
from tests.property.test_store_prune_schedules import SCHEDULES, Play, beginning, judge
from tests.property.test_store_skewed_schedules import BOUND, RATES
from tests.store_fixtures import noise, read_disk, text
from tests.store_schedules import Actor, MemoryBackend, Objects

_TODAY = 1.8e9
CLOCKED = (lease, names, pack_writer, prune)
# So many users at once, of which so many prunes.
_USERS, _PRUNES = 4, 2
# Nobody takes so many calls.
_ENDLESS = 2000
_QUIET = 120.0


class Clocks:
    """Stands in for the module `time`: each user, known by the name of its thread, has a wall clock of its own."""

    def __init__(self) -> None:
        self.off: dict[str, float] = {}
        self.passed = 0.0

    def time(self) -> float:
        return _TODAY + self.off.get(threading.current_thread().name, 0.0)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Ids:
    """Stands in for `secrets`: an example that is played again has the same names."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)

    def token_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def token_hex(self, count: int) -> str:
        return self.token_bytes(count).hex()


@cache
def start() -> Objects:
    """The same store in every process, down to its key: what is found once is found again."""
    with pytest.MonkeyPatch.context() as patch:
        ids = Ids("beginning")
        for module in (config, names):
            patch.setattr(module, "secrets", ids)
        for module in CLOCKED:
            patch.setattr(module, "time", Clocks())
        return dict(beginning.__wrapped__())


class Many(Play):
    """Any number of points of each VM."""

    def _restores(self, opened: Store) -> None:
        points = opened.points()
        for point in points:
            disk = point.record.disks[0]
            assert read_disk(opened, disk.root, disk.size) == self.disks[point.record.created]
        assert {"one", "two"} <= {point.record.vm_name for point in points}, "the newest points are never forgotten"


class Users(RuleBasedStateMachine):
    """Who uses the store at the moment. Only one thread runs at a time: each call of a back end is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Many(dict(start()))
        self.clocks = Clocks()
        self.turn = Condition()
        self.all: dict[str, Actor] = {}
        self.patch = pytest.MonkeyPatch()
        for module in CLOCKED:
            self.patch.setattr(module, "time", self.clocks)
        self.patch.setattr(names, "secrets", Ids("users"))

    # -- what happens --------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.living()) < _USERS)
    @rule(seed=st.integers(0, 3))
    def begin_a_full(self, seed: int) -> None:
        disk = text("garbage") + noise("left behind") + text("b") + noise("d") + text(seed)
        self._begin("full", self.now.write(10 + len(self.all), disk))

    @precondition(lambda self: len(self.living()) < _USERS)
    @rule()
    def begin_an_incremental(self) -> None:
        write = self.now.write_onto_base(10 + len(self.all), "one")

        def work(actor: Actor) -> None:
            # A list of points that is read while one follows another may show neither: nothing to build upon.
            with suppress(StopIteration):
                write(actor)

        self._begin("incremental", work)

    @precondition(lambda self: len(self.living()) < _USERS)
    @rule()
    def begin_to_forget(self) -> None:
        self._begin("forget", self.now.forget("one"))

    @precondition(lambda self: len(self.living()) < _USERS and len(self.living("prune")) < _PRUNES)
    @rule(rate=st.sampled_from(RATES))
    def begin_to_prune(self, rate: float) -> None:
        self.now.rate = rate
        self._begin("prune", self.now.prune())

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, _USERS - 1), calls=st.one_of(st.integers(1, 30), st.just(_ENDLESS)))
    def go_on(self, who: int, calls: int) -> None:
        living = self.living()
        actor = living[who % len(living)]
        for _ in range(calls):
            if not actor.done:
                self._step(actor)

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, _USERS - 1))
    def die(self, who: int) -> None:
        living = self.living()
        living[who % len(living)].dies_at = 0
        self._end(living[who % len(living)])

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, _USERS - 1), off=st.floats(-BOUND, BOUND), passed=st.sampled_from((0.0, 1.0, 45.0)))
    def set_a_clock(self, who: int, off: float, passed: float) -> None:
        living = self.living()
        self.clocks.off[living[who % len(living)].name] = off
        self.clocks.passed += passed

    @rule()
    def restore_everything(self) -> None:
        self.now._restores(Store.open(MemoryBackend(dict(self.now.objects))))

    def teardown(self) -> None:
        try:
            for actor in self.living():
                self._end(actor)
            for actor in self.all.values():
                actor.thread.join()
            judge(self.now, self.all)
        finally:
            self.patch.undo()

    # -- how -----------------------------------------------------------------------------------------------------------

    def living(self, kind: str = "") -> list[Actor]:
        return [actor for name, actor in self.all.items() if not actor.done and name.startswith(kind)]

    def _begin(self, kind: str, work: Callable[[Actor], None]) -> None:
        name = f"{kind} {len(self.all)}"
        self.all[name] = Actor(name, self.turn, work, None)
        self.all[name].thread.start()
        with self.turn:
            self._settle()

    def _step(self, actor: Actor) -> None:
        with self.turn:
            actor.granted += not actor.done
            self.turn.notify_all()
            self._settle()

    def _end(self, actor: Actor) -> None:
        for _ in range(_ENDLESS):
            self._step(actor)
            # Who waits for somebody waits for all.
            for other in self.living("" if actor.waits else actor.name):
                self._step(other)
            if actor.done:
                return
        raise AssertionError(f"{actor.name} does not end")

    def _settle(self) -> None:
        """Until all threads have ended or ask for a call."""
        quiet = self.turn.wait_for(
            lambda: all(one.done or one.asking > one.granted for one in self.all.values()), timeout=_QUIET
        )
        assert quiet, "somebody neither ends nor asks"


def play(examples: int, **about: Any) -> None:
    run_state_machine_as_test(Users, settings=settings(max_examples=examples, stateful_step_count=30, **about))


def test_whatever_happens_every_point_restores() -> None:
    play(max(SCHEDULES // 15, 1))


def test_a_prune_that_copies_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes interruptions at just the right places is found by `test_store_prune_schedules`."""
    monkeypatch.setattr(Reach, "needed_in", lambda self, packs: [])
    # Of the threads of one user either may take a call: an example may end otherwise when it is played again.
    with pytest.raises((AssertionError, StoreDamagedError, Flaky)):
        play(300, phases=[Phase.generate], database=None, derandomize=True)
