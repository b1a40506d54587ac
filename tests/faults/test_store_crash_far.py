"""Runs that die after any of their requests, and many users at once, in a directory and in a bucket.

A request to object storage takes effect as a whole, so what a crash leaves is a prefix of them, and of those under way
at that moment any. A directory has finer states: `test_store_crash` cuts its power between system calls.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from threading import Lock

from mover.errors import FencedError, StoreMissingError
from mover.store import Patience, Store
from mover.store.backend import Backend, Buffer, Tuning, Upload
from tests.power_cut import crash_seed
from tests.store_backends import Place
from tests.store_fixtures import CHUNK, back_up, noise, point_of, restore, small_packs, text, write_disk
from tests.store_schedules import Objects

# Moments looked at; a nightly run looks at all of them several times.
MOMENTS = int(os.environ.get("MOVER_FAR_CRASHES", "8"))

# A put of an object, a delete (None), or a note of the test (the key alone).
Request = tuple[str, bytes | None, bool]


@dataclass
class Recorded:
    """A back end that remembers what was asked of it, in the order in which it was answered."""

    backend: Backend
    log: list[Request] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    @property
    def tuning(self) -> Tuning:
        return self.backend.tuning

    @property
    def location(self) -> str:
        return self.backend.location

    def create(self, key: str) -> Upload:
        return _RecordedUpload(self, key)

    def put(self, key: str, data: bytes) -> bool:
        done = self.backend.put(key, data)
        with self.lock:
            self.log.append((key, bytes(data), True))
        return done

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.backend.get(key, offset, length)

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        return self.backend.read_into(key, offset, view)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self.backend.list(prefix)

    def delete(self, key: str, *, durable: bool = False) -> None:
        self.backend.delete(key, durable=durable)
        with self.lock:
            self.log.append((key, None, True))

    def close(self) -> None:
        self.backend.close()

    def note(self, what: str) -> None:
        with self.lock:
            self.log.append((what, None, False))


@dataclass
class _RecordedUpload:
    recorded: Recorded
    key: str
    data: bytearray = field(default_factory=bytearray)

    def write(self, buffers: Sequence[Buffer]) -> None:
        for one in buffers:
            self.data += one

    def commit(self) -> bool:
        return self.recorded.put(self.key, bytes(self.data))

    def abort(self) -> None:
        pass


def impatient() -> Patience:
    ticks = count()
    return Patience(silence=5, poll=0, clock=lambda: float(next(ticks)), sleep=lambda _: None)


def first_disk() -> bytes:
    return noise("a", CHUNK) + text("b", CHUNK) + bytes(2 * CHUNK) + noise("c", CHUNK) + text("d", 300)


def second_disk() -> bytes:
    return first_disk()[: 4 * CHUNK] + noise("e", CHUNK) + text("f", 3 * CHUNK)


def record(place: Place) -> tuple[list[Request], dict[str, bytes], str]:
    """A store is made, three points are written, one is forgotten, and a prune runs."""
    recorded = Recorded(place.backend())
    store = small_packs(Store.create(recorded), CHUNK)
    recorded.note("made")
    points: dict[str, bytes] = {}
    with store.writer() as writer:
        for number, disk in enumerate((first_disk(), second_disk())):
            point = writer.commit(point_of(write_disk(writer, disk, slot=1), len(disk), number))
            recorded.note(point)
            points[point] = disk
    last = text("g", CHUNK) + second_disk()
    point = back_up(store, last, 2)
    points[point] = last
    recorded.note(point)
    recorded.note("forget")
    store.forget([store.points()[0]])
    recorded.note("forgotten")
    store.prune()
    return recorded.log, points, next(iter(points))


def left_behind(log: Sequence[Request], rng: random.Random, before: Mapping[str, bytes] | None = None) -> Objects:
    """The objects after these requests; of the last few any may have been under way, and not have taken effect.

    A request is only made once all that it rests on was answered: what is lost has no successor that rests on it, and
    packs are all that goes up several at once.
    """
    objects = dict(before or {})
    under_way = {key for key, _, _ in log[-3:]}
    packs_only = all(key.startswith("packs/") for key in under_way)
    lost = {key for key in under_way if rng.random() < 0.5} if packs_only else set()
    for key, data, real in log:
        if real and data is None:
            objects.pop(key, None)
        elif real and data is not None and key not in lost:
            objects[key] = data
    return objects


def test_a_run_that_dies_after_any_request(place: Place) -> None:
    log, points, old = record(place)
    assert len(log) > 30 and any(key.startswith("cond/") for key, _, _ in log)
    rng = random.Random(crash_seed())
    moments = sorted(rng.sample(range(1, len(log) + 1), min(MOMENTS, len(log))))
    for moment in moments:
        done = log[:moment]
        notes = [key for key, _, real in done if not real]
        again = place.another()
        backend = again.backend()
        for key, data in left_behind(done, rng).items():
            assert backend.put(key, data)
        try:
            store = again.open()
        except StoreMissingError:
            assert "made" not in notes
            continue
        listed = {point.id for point in store.points()}
        committed = set(notes) & set(points)
        assert committed - ({old} if "forget" in notes else set()) <= listed <= set(points)
        assert "forgotten" not in notes or old not in listed
        for point in listed:
            assert restore(store, point) == points[point]
        store.prune(patience=impatient())
        after = noise("after", CHUNK) + second_disk()
        points_after = {back_up(again.open(), after, 9): after, **{point: points[point] for point in listed}}
        store = again.open()
        for point, content in points_after.items():
            assert restore(store, point) == content
        assert list(store.verify(deep=True)) == []


def test_many_users_at_once(place: Place) -> None:
    """Backups of disks that have much in common, forgetting, and prunes that run meanwhile."""
    place.create(compression="zstd:1")
    disks: dict[float, bytes] = {}
    lock = Lock()

    def back_up_some(who: int) -> None:
        for turn in range(3):
            created = float(10 * turn + who)
            disk = b"".join(noise(number % 5) for number in range(who, who + 4)) + noise((who, turn)) + text(turn)
            with lock:
                disks[created] = disk
            back_up(small_packs(place.open(), 2 * CHUNK), disk, created, f"vm{who}")

    def forget_some(_: int) -> None:
        for _ in range(4):
            store = place.open()
            store.forget(store.readable_points()[0])

    def prune(_: int) -> None:
        for _ in range(2):
            # A backup that is under way is waited for, and never shut out here.
            place.open().prune(min_live=0.9, patience=Patience(poll=0.05))

    works: list[tuple[Callable[[int], None], int]] = [(back_up_some, who) for who in range(3)]
    works += [(forget_some, 0), (prune, 0), (prune, 1)]
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work, who) for work, who in works]:
            done.result()
    store = place.open()
    left = store.points()
    assert {point.record.vm_name for point in left} == {"vm0", "vm1", "vm2"}
    for point in left:
        assert restore(store, point.id) == disks[point.record.created]
    store.forget(left)
    place.open().prune()
    last = place.open()
    assert len(last.points()) == 3
    assert list(last.verify(deep=True)) == []
    assert {key.split("/")[0] for key in place.objects()} - {"scrub"} == {"index", "packs", "points", "store.json"}


def test_two_commits_of_one_number(place: Place) -> None:
    """A writer and whoever shuts it out put the same name at once: one of them wins."""
    place.create()
    for turn in range(3):
        writer = place.open().writer()
        root = write_disk(writer, noise(turn))
        writer.flush()
        fencing = place.backend()
        with ThreadPoolExecutor(2) as pool:
            fence = pool.submit(fencing.put, f"points/{writer.wid.hex()}.0", b"FENCE\n")
            commit = pool.submit(writer.commit, point_of(root, CHUNK, turn))
            fenced = fence.result()
            assert isinstance(commit.exception(), FencedError) == fenced
        writer.abort()
        assert (turn in {int(point.record.created) for point in place.open().points()}) != fenced
