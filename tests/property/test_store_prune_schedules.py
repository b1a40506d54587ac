"""Backups, forgetting and prunes of one store at once, step by step in thousands of orders, with crashes.

Whatever the order, every restore point that there is restores byte for byte. And taking any one of its precautions away
from the protocol is found out: the search is good enough to be believed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count, islice, product
from typing import Any

import pytest

from mover.errors import FencedError, StoreDamagedError
from mover.store import Patience, Store, Writer, index, roots, store, waiting
from mover.store.identity import Identity
from mover.store.index import Index, IndexView
from mover.store.lease import Lease
from mover.store.names import CONDEMNED, PointName, condemned_key
from mover.store.point import FENCE
from mover.store.prune import Prune
from mover.store.reach import Reach
from tests.store_fixtures import CHUNK, noise, point_of, read_disk, text, write_disk
from tests.store_schedules import END, Actor, MemoryBackend, Objects, play

# Schedules looked at; a nightly run looks at more.
SCHEDULES = int(os.environ.get("MOVER_PRUNE_SCHEDULES", "100"))
EVERY = "MOVER_PRUNE_SCHEDULES" in os.environ
# How many are tried to find out a protocol that lacks something.
ENOUGH = 3000

DISKS = {
    0: text("a") + text("b") + text("c") + noise("d"),
    1: text("a") + text("e") + text("c") + noise("f"),
    2: text("g") + text("e") + text("h") + noise("f"),
    3: text("x") + text("h") + noise("y"),
}

CASTS = [
    ("full", "prune"),
    ("full", "prune", "full too"),
    ("incremental", "forget", "prune"),
    ("full", "incremental", "prune"),
    ("full", "prune", "prune too"),
    ("incremental", "forget", "prune", "prune too"),
    ("full", "incremental", "prune", "full too", "forget", "prune too"),
]


@cache
def beginning() -> tuple[tuple[str, bytes], ...]:
    """A store with points of two VMs, of which some are forgotten, and data that nobody needs."""
    backend = MemoryBackend({})
    made = Store.create(backend, compression="zstd:1")
    points = []
    for number, vm in ((0, "one"), (1, "one"), (2, "two"), (3, "one")):
        with made.writer() as writer:
            if number != 2:
                writer.seal(memoryview(noise(f"waste {number}")))
            root = write_disk(writer, DISKS[number])
            points.append(writer.commit(point_of(root, len(DISKS[number]), number, vm)))
    assert [point.id for point in made.forget([made.point(points[0])])] == points[:1]
    with made.writer() as writer:
        writer.seal(memoryview(text("garbage") + noise("left behind")))
    return tuple(backend.objects.items())


@dataclass
class Play:
    """One schedule: what is written, by the time of the point.

    `skew` is added to the times of what is written, and a second of a prune's clock is `rate` seconds.
    """

    objects: Objects = field(default_factory=lambda: dict(beginning()))
    disks: dict[float, bytes] = field(default_factory=lambda: dict[float, bytes](DISKS))
    writers: dict[str, bytes] = field(default_factory=dict)
    skew: float = 0.0
    rate: float = 1.0
    # Where answers get lost, a stamp may come into being when its point was given up long ago.
    tells_of_losses: bool = True

    def open(self, actor: Actor) -> Store:
        return Store.open(MemoryBackend(self.objects, actor.step))

    def write(self, created: int, disk: bytes) -> Callable[[Actor], None]:
        """A full backup that has much in common with what nobody needs any more."""
        self.disks[created + self.skew] = disk

        def work(actor: Actor) -> None:
            opened = self.open(actor)
            assert opened._index.view.segments
            with opened.writer() as writer:
                self.writers[actor.name] = writer.wid
                self._commit(
                    writer, point_of(write_disk(writer, disk), len(disk), created + self.skew, f"full{created}")
                )

        return work

    def write_onto_base(self, created: int, vm: str) -> Callable[[Actor], None]:
        """An incremental: most of its chunks are those of its base, the oldest point, and never looked up."""

        def work(actor: Actor) -> None:
            opened = self.open(actor)
            with opened.writer() as writer:
                self.writers[actor.name] = writer.wid
                base = next(point for point in opened.points() if point.record.vm_name == vm).record
                old = self.disks[base.created]
                self.disks[created + self.skew] = new = noise(created) + old[CHUNK:]
                disk = base.disks[0]
                root = write_disk(writer, new, [0], base=disk.root, base_size=disk.size)
                self._commit(writer, point_of(root, len(new), created + self.skew, vm))

        return work

    @staticmethod
    def _commit(writer: Writer, record: Any) -> None:
        writer.commit(record)

    def forget(self, vm: str) -> Callable[[Actor], None]:
        """Forget what is forgettable of a VM, again and again."""

        def work(actor: Actor) -> None:
            opened = self.open(actor)
            for _ in range(3):
                opened.forget([point for point in opened.points() if point.record.vm_name == vm][:-1])

        return work

    def prune(self) -> Callable[[Actor], None]:
        def work(actor: Actor) -> None:
            ticks = count()
            patience = Patience(silence=4, poll=1, clock=lambda: next(ticks) * self.rate, sleep=actor.sleep)
            self.open(actor).prune(min_live=0.9, patience=patience)

        return work

    def shut_out(self, actor: Actor) -> bool:
        """Whether a prune has given this writer up: what it builds on may be gone, and it cannot commit."""
        wid = self.writers.get(actor.name, b"").hex()
        return any(data == FENCE and key.startswith(f"points/{wid}.") for key, data in self.objects.items())

    def check(self) -> None:
        """Every point restores, and once more after a prune that nobody disturbs, which leaves nothing behind."""
        self._restores(Store.open(MemoryBackend(self.objects)))
        last = Store.open(MemoryBackend(self.objects))
        assert not self.tells_of_losses or last._misfits(last.points(), []) == [], "nobody is told of a loss"
        ticks = count()
        last.prune(patience=Patience(1, 0, lambda: float(next(ticks)), lambda _: None))
        self._restores(last)

    def _restores(self, opened: Store) -> None:
        for point in opened.points():
            disk = point.record.disks[0]
            assert read_disk(opened, disk.root, disk.size) == self.disks[point.record.created]
        left = {point.record.created for point in opened.points()}
        assert 2 in left and left & {3, 11 + self.skew}, "the newest points are never forgotten"


Works = dict[str, Callable[[Actor], None]]


def everybody(now: Play, seed: int) -> Works:
    """All that may take part."""
    garbage = text("garbage") + noise("left behind") + text("b") + noise("d") + text(seed)
    return {
        "full": now.write(13, garbage),
        "incremental": now.write_onto_base(11, "one"),
        "prune": now.prune(),
        "full too": now.write(12, noise("left behind") + text("b")),
        "forget": now.forget("one"),
        "prune too": now.prune(),
    }


def scene(seed: int, now: Play) -> tuple[Play, Works, dict[str, int]]:
    """Who takes part in the schedule `seed`, and who dies."""
    cast = CASTS[seed % len(CASTS)]
    rng = random.Random(f"deaths {seed}")
    deaths = {rng.choice(cast): rng.randint(1, 60)} if rng.random() < 0.3 else {}
    return now, {name: everybody(now, seed)[name] for name in cast}, deaths


def run(seed: int, now: Play | None = None) -> set[str]:
    """Play one schedule and check what is left; what went on in it."""
    now, works, deaths = scene(seed, now or Play())
    actors = play(seed, works, deaths)
    seen = {f"{name} died" for name, actor in actors.items() if actor.steps >= deaths.get(name, END)}
    return seen | judge(now, actors)


def judge(now: Play, actors: dict[str, Actor]) -> set[str]:
    """Nobody failed but for being shut out, and nothing is lost."""
    seen = set()
    for actor in actors.values():
        if isinstance(actor.failure, FencedError) and now.shut_out(actor):
            seen.add("fenced")
        elif actor.failure is not None:
            raise actor.failure
    now.check()
    return seen


Script = list[tuple[str, int]]


def scripts() -> Iterator[Script]:
    """Two interruptions, of a prune by a backup, and of that by the others; not all places are tried."""
    for pruned, written in product(range(1, 61), range(1, 25, 3)):
        yield [("prune", pruned), ("incremental", written), ("forget", END), ("prune", END)]
    for pruned, written in product(range(1, 46, 3), range(1, 14)):
        yield [("prune", pruned), ("full", written), ("prune", END)]


def run_script(script: Script) -> None:
    """Play it and check what is left."""
    now = Play()
    names = {name for name, _ in script}
    judge(now, play(script, {name: work for name, work in everybody(now, 0).items() if name in names}, {}))


@pytest.mark.parametrize("part", range(3))
def test_no_two_interruptions_lose_anything(part: int) -> None:
    for script in islice(scripts(), part, None, 3 if EVERY else 24):
        try:
            run_script(script)
        except BaseException as error:
            error.add_note(f"{script}")
            raise


def test_no_order_of_steps_loses_anything() -> None:
    seen: set[str] = set()
    for seed in range(SCHEDULES):
        try:
            seen |= run(seed)
        except BaseException as error:
            error.add_note(f"schedule {seed}")
            raise
    assert {"fenced", "prune died", "full died", "incremental died"} <= seen


class LateLease(Lease):
    """Taken only once the index has been looked at."""

    def __init__(self, backend: Any, wid: bytes) -> None:
        self._late = (backend, wid)
        self.wid = wid

    def renew_if_due(self) -> None:
        if self._late:
            (backend, wid), self._late = self._late, ()
            super().__init__(backend, wid)

    def release(self) -> None:
        if not self._late:
            super().release()


class NoLease(LateLease):
    def renew_if_due(self) -> None:
        pass


def index_before_condemned(
    backend: MemoryBackend, identity: Identity, _: Any, real: Any = index._open_all
) -> IndexView:
    """The index as it was one step before the condemned packs are listed."""
    backend.step()
    before = {key: data for key, data in backend.objects.items() if not key.startswith(CONDEMNED)}
    backend.step()
    condemned = {key: data for key, data in backend.objects.items() if key.startswith(CONDEMNED)}
    seen = MemoryBackend(before | condemned)
    view: IndexView = real(seen, identity, seen)
    return view


def cached_index(self: Index, real: Any = Index.reload) -> IndexView:
    return self._view or real(self)


def first_roots(self: Prune, real: Any = Prune._roots) -> Any:
    if not hasattr(self, "first"):
        self.first = real(self)  # type: ignore[attr-defined]
    return self.first


def condemned_no_longer_first(self: Prune, plan: Any, real: Any = Prune._delete) -> None:
    self._backend.delete(condemned_key(self.wid))
    real(self, plan)


def forget_at_once(backend: MemoryBackend, name: PointName) -> bool:
    backend.delete(name.key)
    return True


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "the index is looked at before the lease is taken": (store, "Lease", LateLease),
    "writers take no lease": (store, "Lease", NoLease),
    "a prune does not wait for writers": (Prune, "_wait_for_writers", lambda self: None),
    "a silent writer is given up, and not shut out": (waiting, "_fence", lambda backend, wid: False),
    "points are not looked at again": (Prune, "_roots", first_roots),
    "the index is listed before the condemned packs": (index, "_open_all", index_before_condemned),
    "writers count on condemned packs": (index, "read_condemned", lambda *_: ({}, [])),
    "an index that was loaded before is used": (Index, "reload", cached_index),
    "condemned no longer before they are gone": (Prune, "_delete", condemned_no_longer_first),
    "what is needed is not copied": (Reach, "needed_in", lambda self, packs: []),
    "forgetting leaves no trace": (roots, "_move", forget_at_once),
}

# Found by well-placed interruptions only.
NEEDS_SCRIPT = {
    "the index is listed before the condemned packs": "full",
    "forgetting leaves no trace": "incremental",
}


@pytest.mark.parametrize("missing", MUTATIONS)
def test_each_step_is_needed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = MUTATIONS[missing]
    beginning()
    monkeypatch.setattr(owner, name, replacement)
    if missing in NEEDS_SCRIPT:
        interrupting = NEEDS_SCRIPT[missing]
        tries: Iterator[Callable[[], object]] = (
            partial(run_script, script) for script in scripts() if script[1][0] == interrupting
        )
    else:
        tries = (partial(run, seed) for seed in range(0, ENOUGH * len(CASTS), len(CASTS)))
    for attempt in tries:
        try:
            attempt()
        except (AssertionError, StoreDamagedError):
            return
    pytest.fail(f"all schedules are well although {missing}")
