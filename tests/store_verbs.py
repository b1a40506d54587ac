"""What changes a store, each verb in a scene of its own: a store at the beginning, the verb, and what must hold then.

Tests cut the power, make calls fail, or let the process die while the verb is at work, and then let it begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mover.copy.points import copy_points
from mover.store import Patience, Store
from mover.store.backend import Backend
from mover.store.directory import DirectoryBackend
from mover.store.file_ops import FileOps
from mover.store.merge import MOST
from tests.store_fixtures import CHUNK, back_up, files_of, noise, read_disk, small_packs, text, write_disk


@dataclass(frozen=True)
class Scene:
    """`begin` makes a store in a folder; `act` does the verb to the store that is at a back end: there, or a copy.

    `disks` are the contents by the time of their points: those of `lasting` restore whatever happens, and after `act`
    has ended in order, once, `achieved` holds.
    """

    disks: dict[int, bytes]
    lasting: frozenset[int]
    begin: Callable[[Path], None]
    act: Callable[[Path, Backend], None]
    achieved: Callable[[Path], None]

    def holds(self, folder: Path) -> None:
        """Every point that should be there is, and each that is there restores, but for those that were damaged."""
        store = Store.open(folder / "store")
        found = {int(point.record.created): point for point in store.points()}
        assert self.lasting <= found.keys() <= self.disks.keys()
        sound = [point for created, point in found.items() if created not in DAMAGED]
        for point in sound:
            disk = point.record.disks[0]
            assert read_disk(store, disk.root, disk.size) == self.disks[int(point.record.created)]
        assert list(store.verify(sound, deep=True)) == []


def directory(folder: Path, ops: FileOps | None = None) -> DirectoryBackend:
    """The store of a scene in its folder, written with the given operations."""
    return DirectoryBackend(str(folder / "store"), ops)


def opened(backend: Backend) -> Store:
    return small_packs(Store.open(backend), CHUNK)


def impatient() -> Patience:
    ticks = count()
    return Patience(silence=5, poll=0, clock=lambda: float(next(ticks)), sleep=lambda _: None)


def packs(folder: Path) -> int:
    return sum(file.stat().st_size for file in files_of(folder / "store" / "packs"))


def restores(folder: Path, created: int, disk: bytes) -> None:
    store = Store.open(folder / "store")
    point = next(point for point in store.points() if int(point.record.created) == created)
    assert read_disk(store, point.record.disks[0].root, len(disk)) == disk


OLD = b"".join(noise(number) for number in range(5))
NEW = OLD[: 2 * CHUNK] + text("new") + noise("new")
NEXT = NEW[:CHUNK] + noise("next", 2 * CHUNK) + text("next")
# The point that the scene of a repair damages.
DAMAGED = frozenset({7})


def two_points(folder: Path) -> None:
    store = small_packs(Store.create(folder / "store"), CHUNK)
    back_up(store, OLD, 0)
    back_up(store, NEW, 1)


def next_backup(folder: Path, backend: Backend) -> None:
    store = opened(backend)
    if not any(int(point.record.created) == 2 for point in store.points()):
        back_up(store, NEXT, 2)


def backed_up(folder: Path) -> None:
    restores(folder, 2, NEXT)
    with Store.open(folder / "store").writer() as writer:
        assert writer.seal(memoryview(NEXT)).new == 0


def prune(folder: Path, backend: Backend) -> None:
    store = opened(backend)
    store.forget([point for point in store.points() if int(point.record.created) == 0])
    store.prune(patience=impatient())


def freed(folder: Path) -> None:
    """Of both points only the newer is left, and of the packs hardly more than what it takes."""
    assert packs(folder) < 3.5 * CHUNK
    kinds = {file.relative_to(folder / "store").parts[0] for file in files_of(folder / "store")}
    # A probe that could not be removed stays for a day.
    assert kinds <= {"store.json", "points", "packs", "index", "scrub", "probe"}, "nothing is left of what failed"
    restores(folder, 1, NEW)


MANY = {number: text(number, 2 * CHUNK) for number in range(MOST)}


def many_segments(folder: Path) -> None:
    store = Store.create(folder / "store")
    for created, disk in MANY.items():
        back_up(store, disk, created)
    assert len(files_of(folder / "store" / "index")) == MOST


def merging_backup(folder: Path, backend: Backend) -> None:
    store = opened(backend)
    with store.writer() as writer:
        writer.put_blob(noise(len(store._index.view.segments), 100))


def merged(folder: Path) -> None:
    assert any(file.parent.name != "0" for file in files_of(folder / "store" / "index"))
    assert len(Store.open(folder / "store")._index.view.segments) <= MOST
    for created, disk in MANY.items():
        restores(folder, created, disk)


HURT = noise("hurt") + noise("whole", 2 * CHUNK)


def damaged(folder: Path) -> None:
    """One record of one point is bad, and the segment of another run, which had not committed, is gone."""
    path = folder / "store"
    store = small_packs(Store.create(path), 8 * CHUNK)
    back_up(store, OLD, 0, "other")
    back_up(store, HURT, 7)
    for file in (path / "packs").rglob("*.d"):
        data = bytearray(file.read_bytes())
        if (at := data.find(noise("hurt")[:100])) >= 0:
            data[at] ^= 1
            file.chmod(0o600)
            file.write_bytes(data)
    before = set(files_of(path / "index"))
    with store.writer() as writer:
        write_disk(writer, noise("unlisted", 3 * CHUNK))
    for file in set(files_of(path / "index")) - before:
        file.unlink()


def repair(folder: Path, backend: Backend) -> None:
    opened(backend).repair(deep=True, patience=impatient())


def repaired(folder: Path) -> None:
    """What is lost is noted; once it was seen again, all is whole."""
    store = Store.open(folder / "store")
    assert len(store.lost_roots()) == 1
    with store.writer() as writer:
        assert writer.seal(memoryview(noise("unlisted", 3 * CHUNK) + noise("whole", 2 * CHUNK))).new == 0
        assert writer.seal(memoryview(noise("hurt"))).new == CHUNK
    restores(folder, 7, HURT)
    assert Store.open(folder / "store").repair(deep=True, patience=impatient()).losses == ()


def copy_from(folder: Path) -> Path:
    """The store that is copied, beside the one that is written to."""
    return folder.parent / f"{folder.name}-source"


def half_copied(folder: Path) -> None:
    source = Store.create(copy_from(folder))
    target = Store.create(folder / "store")
    back_up(source, OLD, 0)
    asyncio.run(copy_points(source, target, source.points(), lambda event: None))
    back_up(source, NEW, 1)
    back_up(source, NEXT, 2)


def copy(folder: Path, backend: Backend) -> None:
    source = Store.open(copy_from(folder))
    assert not asyncio.run(copy_points(source, opened(backend), source.points(), lambda event: None)).failed


def copied(folder: Path) -> None:
    for created, disk in ((0, OLD), (1, NEW), (2, NEXT)):
        restores(folder, created, disk)
    assert len(Store.open(folder / "store").points()) == 3


STATES = {0: OLD, 1: NEW, 2: NEXT}
SCENES = {
    "backup": Scene(STATES, frozenset({0, 1}), two_points, next_backup, backed_up),
    "prune": Scene({0: OLD, 1: NEW}, frozenset({1}), two_points, prune, freed),
    "merge": Scene(MANY, frozenset(MANY), many_segments, merging_backup, merged),
    "repair": Scene({0: OLD, 7: HURT}, frozenset({0, 7}), damaged, repair, repaired),
    "copy": Scene(STATES, frozenset({0}), half_copied, copy, copied),
}
