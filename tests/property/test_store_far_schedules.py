"""Backups, forgetting and prunes of one store that is far away: answers get lost, lists lag behind.

As in `test_store_prune_schedules`, and nothing may be lost either; here, too, leaving a precaution out is found out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from mover.errors import FencedError, MoverError, StoreDamagedError, StoreUnansweredError
from mover.store import Patience, Store, Writer, prune
from tests.far_memory import Far, FarBackend
from tests.property.test_store_prune_schedules import CASTS, Play, beginning, everybody
from tests.store_schedules import Actor, MemoryBackend, play

SCHEDULES = int(os.environ.get("MOVER_PRUNE_SCHEDULES", "100")) // 5
ENOUGH = 2000
LAG = 25


@dataclass
class FarPlay(Play):
    """A schedule in a far place."""

    far: Far = field(default_factory=lambda: Far({}, random.Random(0)))
    settle: int = 0
    tells_of_losses: bool = False

    def open(self, actor: Actor) -> Store:
        return Store.open(FarBackend(self.objects, actor.step, far=self.far))

    def prune(self) -> Callable[[Actor], None]:
        def work(actor: Actor) -> None:
            patience = Patience(
                60, 1, settle=self.settle, clock=lambda: float(self.far.step), sleep=partial(self._sleep, actor)
            )
            self.open(actor).prune(min_live=0.9, patience=patience)

        return work

    def _sleep(self, actor: Actor, _: float) -> None:
        actor.sleep(1)
        self.far.tick()


def scene(seed: int, *, lost: float, lag: int) -> tuple[FarPlay, dict[str, Actor]]:
    """Play one schedule."""
    objects = dict(beginning())
    far = Far(objects, random.Random(f"far {seed}"), lost=lost, lag=lag)
    now = FarPlay(objects, far=far, settle=2 * lag)
    works = {name: everybody(now, seed)[name] for name in CASTS[seed % len(CASTS)]}
    return now, play(seed, works, {})


def run(seed: int, *, lost: float, lag: int) -> set[str]:
    """Play one schedule, and check what is left: before and after that which is on its way has happened."""
    now, actors = scene(seed, lost=lost, lag=lag)
    seen = {"unanswered"} if now.far.unanswered else set()
    for actor in actors.values():
        if actor.failure is None:
            continue
        if isinstance(actor.failure, StoreUnansweredError) or _may_fail(now, actor, lag):
            seen.add(type(actor.failure).__name__)
        else:
            raise actor.failure
    if seed % 3 == 0:
        now.far.let_happen()
    now.check()
    if now.far.late:
        seen.add("late")
    now.far.let_happen()
    now._restores(Store.open(MemoryBackend(now.objects)))
    return seen


def _may_fail(now: FarPlay, actor: Actor, lag: int) -> bool:
    """Who is shut out, and who sees lists that cannot be true, gives up; nothing is lost by that."""
    shut_out = isinstance(actor.failure, FencedError) and now.shut_out(actor)
    return shut_out or (lag > 0 and isinstance(actor.failure, MoverError))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by steps here."""
    monkeypatch.setattr("mover.store.index.time.sleep", lambda _: None)


def test_lost_answers_lose_nothing() -> None:
    seen: set[str] = set()
    for seed in range(SCHEDULES):
        try:
            seen |= run(seed, lost=0.08, lag=0)
        except BaseException as error:
            error.add_note(f"schedule {seed}")
            raise
    assert {"unanswered", "late", "StoreUnansweredError"} <= seen


def test_lists_that_lag_behind_lose_nothing() -> None:
    for seed in range(SCHEDULES):
        try:
            run(seed, lost=0.0, lag=LAG)
        except BaseException as error:
            error.add_note(f"schedule {seed}")
            raise


def release_anyway(self: Writer) -> None:
    self._lease.release()


MUTATIONS: dict[str, tuple[Any, str, Any, float, int]] = {
    "the lease is given back though a commit is undecided": (Writer, "_release", release_anyway, 0.25, 0),
    "a prune does not wait for lists to settle": (prune, "settle", lambda *_: None, 0.0, LAG),
}


@pytest.mark.parametrize("missing", MUTATIONS)
def test_each_precaution_is_needed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement, lost, lag = MUTATIONS[missing]
    beginning()
    monkeypatch.setattr(owner, name, replacement)
    for seed in range(ENOUGH):
        try:
            run(seed, lost=lost, lag=lag)
        except (AssertionError, StoreDamagedError):
            return
    pytest.fail(f"all schedules are well although {missing}")
