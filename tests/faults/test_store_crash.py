"""Committed restore points survive power cuts at any moment, full disks and I/O errors."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mover.errors import MoverError, StoreFullError, StoreIoError, StoreMissingError, StoreUnansweredError
from mover.store import Store
from mover.store.backend import Buffer
from mover.store.directory import DirectoryBackend
from mover.store.file_ops import FileOps
from tests.power_cut import CutDisk, Op, RecordingOps, crash_every, crash_seed, remains, spread
from tests.store_fixtures import CHUNK, back_up, noise, point_of, restore, small_packs, text, write_disk

# States looked at per prefix of the log that is looked at; a nightly run looks at more.
STATES = int(os.environ.get("MOVER_CRASH_STATES", "3"))


def first_disk() -> bytes:
    return noise("a", CHUNK) + text("b", CHUNK) + bytes(2 * CHUNK) + noise("c", CHUNK) + text("d", 300)


def second_disk() -> bytes:
    return first_disk()[: 4 * CHUNK] + noise("e", CHUNK) + text("f", 3 * CHUNK)


def record_two_runs(path: Path) -> tuple[list[Op], dict[str, bytes]]:
    """The log of making a store and two runs, with a note when a commit has returned; points and their content."""
    ops = RecordingOps()
    backend = DirectoryBackend(str(path), ops)
    backend.make_root()
    store = small_packs(Store.create(backend), CHUNK)
    ops.note("made")
    points: dict[str, bytes] = {}
    with store.writer() as writer:
        for number, disk in enumerate((first_disk(), second_disk())):
            point = writer.commit(point_of(write_disk(writer, disk, slot=1), len(disk), number))
            ops.note(point)
            points[point] = disk
    last = text("g", CHUNK) + second_disk()
    points[back_up(store, last, 2)] = last
    ops.note(list(points)[-1])
    return ops.log, points


def survives(path: Path, committed: Sequence[str], points: dict[str, bytes]) -> None:
    """Every committed point is there, every point that is there restores, nothing is damaged, and one can go on."""
    store = Store.open(path)
    listed = [point.id for point in store.points()]
    assert set(committed) <= set(listed) <= set(points)
    for point in listed:
        assert restore(store, point) == points[point]
    assert list(store.verify(deep=True)) == []
    after = noise("after", CHUNK) + second_disk()
    point = back_up(store, after, 9)
    store = Store.open(path)
    assert restore(store, point) == after
    assert list(store.verify()) == []


def states(log: list[Op], *, honest: bool = True) -> Iterator[tuple[CutDisk, list[str], bool]]:
    """After each operation: the disk, the points committed so far, and whether the store had been made."""
    disk = CutDisk(honest=honest)
    committed: list[str] = []
    for op in log:
        disk.apply(op)
        if op.call == "note":
            committed.append(op.path)
        yield disk, [note for note in committed if note != "made"], "made" in committed


def test_every_prefix_of_the_log_survives_a_power_cut(tmp_path: Path) -> None:
    log, points = record_two_runs(tmp_path / "store")
    assert len(log) > 100
    rng = random.Random(crash_seed())
    left = tmp_path / "left"
    looked_at = spread(len(log), crash_every(), rng)
    for done, (disk, committed, made) in enumerate(states(log), 1):
        if done not in looked_at:
            continue
        for kept in remains(rng, STATES):
            left.mkdir()
            disk.cut(rng, kept, str(tmp_path), left)
            try:
                survives(left / "store", committed, points)
            except StoreMissingError:
                assert not made
            shutil.rmtree(left)


def test_a_disk_that_lies_about_syncing_is_noticed(tmp_path: Path) -> None:
    """The test above can fail: with syncs that do nothing, points are lost."""
    log, points = record_two_runs(tmp_path / "store")
    rng = random.Random(2)
    lost = 0
    for number, (disk, committed, _) in enumerate(states(log, honest=False)):
        if number < len(log) - 20:
            continue
        left = tmp_path / "left"
        left.mkdir()
        disk.cut(rng, 0.8, str(tmp_path), left)
        try:
            survives(left / "store", committed, points)
        except (MoverError, AssertionError):
            lost += 1
        shutil.rmtree(left)
    assert lost > 10


@dataclass
class FailingOps(FileOps):
    """Fails call number `at`, and all that follow, with `error`."""

    at: int
    error: int
    calls: int = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls >= self.at:
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: str) -> int:
        self._count()
        return super().create(path)

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        self._count()
        super().write(fd, buffers)

    def sync(self, fd: int) -> None:
        self._count()
        super().sync(fd)

    def link(self, source: str, target: str) -> None:
        self._count()
        super().link(source, target)

    def mkdir(self, path: str) -> None:
        self._count()
        super().mkdir(path)

    def sync_dir(self, path: str) -> None:
        self._count()
        super().sync_dir(path)


@pytest.mark.parametrize(
    ("error", "expected"), [(errno.ENOSPC, StoreFullError), (errno.EROFS, StoreFullError), (errno.EIO, StoreIoError)]
)
def test_a_store_that_stops_taking_data(tmp_path: Path, error: int, expected: type[MoverError]) -> None:
    path = tmp_path / "store"
    kept = back_up(Store.create(path), first_disk())
    for at in range(1, 200):
        ops = FailingOps(at, error)
        store = small_packs(Store.open(path), CHUNK, DirectoryBackend(str(path), ops))
        try:
            point = back_up(store, noise(at, CHUNK) + second_disk(), at)
        except (expected, StoreUnansweredError):
            assert restore(Store.open(path), kept) == first_disk()
            assert not any(path.joinpath("tmp").iterdir())
        else:
            # The stamp of a point that is committed is no reason to fail.
            assert restore(Store.open(path), point) == noise(at, CHUNK) + second_disk()
            if ops.calls < at:
                break
    else:
        pytest.fail("never got through")
    assert at > 20
    assert restore(Store.open(path), point) == noise(at, CHUNK) + second_disk()
    assert list(Store.open(path).verify(deep=True)) == []


def test_a_run_that_failed_is_not_repeated(tmp_path: Path) -> None:
    """What an aborted run had made durable is found by the next one."""
    path = tmp_path / "store"
    store = small_packs(Store.create(path), CHUNK)
    disk = b"".join(noise(number) for number in range(20))
    with pytest.raises(RuntimeError), store.writer() as writer:
        write_disk(writer, disk)
        raise RuntimeError("the pool is gone")
    assert Store.open(path).points() == []
    with small_packs(Store.open(path), CHUNK).writer() as writer:
        sealed = writer.seal(memoryview(disk))
        assert sealed.known >= 19 * CHUNK


def test_uploads_of_dead_processes_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = Store.create(path)
    with store.writer() as writer:
        writer.seal(memoryview(noise(1)))
        mine = set(path.joinpath("tmp").iterdir())
        assert len(mine) == 1
        (path / "tmp" / "dead").write_bytes(b"x")
        (path / "tmp" / "young").write_bytes(b"x")
        for old in (*mine, path / "tmp" / "dead"):
            os.utime(old, (0, 0))
        with Store.open(path).writer():
            assert set(path.joinpath("tmp").iterdir()) == mine | {path / "tmp" / "young"}


@dataclass
class NameNotSynced(FileOps):
    """The directory `of` is synced in vain, once: whether the names in it last is not known."""

    of: str
    left: int = 1
    synced: int = 0

    def sync_dir(self, path: str) -> None:
        if path.endswith(self.of):
            if self.left:
                self.left -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.synced += 1
        super().sync_dir(path)


def test_a_commit_whose_name_may_not_last_is_undecided(tmp_path: Path) -> None:
    """The run was told that it failed, but the point is there: nobody else may take its number, and no other commit
    of the run fails for it."""
    path = tmp_path / "store"
    back_up(Store.create(path), first_disk())
    ops = NameNotSynced("/points", left=0)
    store = small_packs(Store.open(path), CHUNK, DirectoryBackend(str(path), ops))
    with store.writer() as writer:
        root = write_disk(writer, second_disk())
        # Directories are synced once before anything is put into them.
        writer.commit(point_of(root, len(second_disk()), 1))
        ops.left, ops.synced = 1, 0
        with pytest.raises(StoreUnansweredError):
            writer.commit(point_of(root, len(second_disk()), 2))
        assert ops.synced == 0
        last = writer.commit(point_of(root, len(second_disk()), 3))
        assert ops.synced >= 2, "the name of the one before lasts now, too"
    assert [point.record.created for point in Store.open(path).points()] == [0.0, 1.0, 2.0, 3.0]
    assert restore(Store.open(path), last) == second_disk()
    assert not list((path / "lease").iterdir())


def test_a_run_that_ends_with_an_undecided_commit_keeps_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "store"
    back_up(Store.create(path), first_disk())
    ops = NameNotSynced("/points", left=0)
    store = small_packs(Store.open(path), CHUNK, DirectoryBackend(str(path), ops))
    with pytest.raises(StoreUnansweredError), store.writer() as writer:
        root = write_disk(writer, second_disk())
        writer.commit(point_of(root, len(second_disk()), 1))
        ops.left = 1
        writer.commit(point_of(root, len(second_disk()), 2))
    assert len(list((path / "lease").iterdir())) == 1


def test_an_index_whose_name_may_not_last_does_not_stop_the_run(tmp_path: Path) -> None:
    """What could not be listed for sure is listed again, under another name."""
    path = tmp_path / "store"
    back_up(Store.create(path), first_disk())
    ops = NameNotSynced("/index/0", left=0)
    store = small_packs(Store.open(path), CHUNK, DirectoryBackend(str(path), ops))
    with store.writer() as writer:
        writer.seal(memoryview(noise("x")))
        writer.flush()
        root = write_disk(writer, second_disk())
        ops.left = 1
        with pytest.raises(StoreIoError):
            writer.commit(point_of(root, len(second_disk()), 1))
        point = writer.commit(point_of(root, len(second_disk()), 2))
    assert restore(Store.open(path), point) == second_disk()
    assert list(Store.open(path).verify(deep=True)) == []
