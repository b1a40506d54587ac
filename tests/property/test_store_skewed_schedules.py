"""The same schedules with clocks that are wrong: wall clocks up to half a day off and jumping, others fast or slow.

A clock of a prune that runs fast gives up writers that live, one that runs slowly waits; neither loses anything. Points
may say that they are older than what they were made from.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from typing import Any

import pytest

from mover.errors import FencedError, StoreDamagedError
from mover.store import Patience, lease, names, pack_writer, prune, waiting
from mover.store.backend import Backend, ObjectMissingError
from mover.store.lease import read_leases, remove_lease
from mover.store.names import lease_key
from tests.property.test_store_prune_schedules import CASTS, ENOUGH, SCHEDULES, Play, beginning, run

# Seconds by which a wall clock may be off: two of them differ by less than what notes and probes of the dead are kept.
BOUND = 12 * 3600.0
_TODAY = 1.8e9
# Which of the points of a VM an incremental says to lie between, and whether it claims to come from tomorrow.
SKEWS = (0.0, -10.75, -9.25, -8.5, BOUND)
RATES = (0.1, 1.0, 100.0)


class Clocks:
    """Stands in for the module `time`: no two looks at the wall clock agree, and the other one goes by leaps."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"clocks {seed}")
        self._passed = 0.0

    def time(self) -> float:
        return _TODAY + self._rng.uniform(-BOUND, BOUND)

    def monotonic(self) -> float:
        self._passed += self._rng.choice((0.0, 0.0, 0.0, 1.0, 45.0))
        return self._passed

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def run_skewed(seed: int, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    rng = random.Random(f"skew {seed}")
    clocks = Clocks(seed)
    with monkeypatch.context() as patched:
        for module in (lease, names, pack_writer, prune):
            patched.setattr(module, "time", clocks)
        return run(seed, Play(skew=rng.choice(SKEWS), rate=rng.choice(RATES)))


def test_wrong_clocks_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    beginning()
    renewed: list[bytes] = []
    real = lease.Lease.renew

    def renew(self: lease.Lease) -> None:
        renewed.append(self.wid)
        real(self)

    monkeypatch.setattr(lease.Lease, "renew", renew)
    seen: set[str] = set()
    for seed in range(SCHEDULES):
        try:
            seen |= run_skewed(seed, monkeypatch)
        except BaseException as error:
            error.add_note(f"schedule {seed}")
            raise
    assert {"fenced", "prune died", "full died", "incremental died"} <= seen
    assert renewed


def by_what_leases_say(
    backend: Backend, patience: Patience, *arguments: Any, real: Any = waiting._watch, **how: bool
) -> int:
    """Who says to have begun long ago is taken for dead, and not shut out."""
    for wid, renewals in read_leases(backend).items():
        with suppress(ObjectMissingError):
            began = json.loads(backend.get(lease_key(wid)))["started"]
            if prune.time.time() - began > patience.silence:
                remove_lease(backend, wid, renewals)
    shut_out: int = real(backend, patience, *arguments, **how)
    return shut_out


def test_a_prune_that_believes_wall_clocks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    beginning()
    monkeypatch.setattr(waiting, "_watch", by_what_leases_say)
    for seed in range(0, ENOUGH * len(CASTS), len(CASTS)):
        try:
            run_skewed(seed, monkeypatch)
        except FencedError:
            continue  # a writer that noticed: it has lost its time only
        except (AssertionError, StoreDamagedError):
            run(seed)  # with right clocks nothing is wrong with it
            return
    pytest.fail("all schedules are well although a prune believes wall clocks")
