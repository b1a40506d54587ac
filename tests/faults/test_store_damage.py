"""Any byte that is not what was written is found, or does not matter; it never crashes and never restores wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mover.errors import FormatTooNewError, MoverError, NotFoundError, StoreDamagedError, StoreMissingError
from mover.store import Damage, Store, config
from tests.store_fixtures import (
    CHUNK,
    add_notes,
    back_up,
    files_of,
    noise,
    point_of,
    read_disk,
    restore,
    small_packs,
    text,
    write_disk,
)

# Every so many bytes are flipped; a nightly run flips all.
STEP = int(os.environ.get("MOVER_FLIP_STEP", "17"))


def small_disk(last: int = 0) -> bytes:
    """Six chunks that take little room, and a short one."""
    return b"".join(text(number, CHUNK) for number in range(5)) + bytes(CHUNK) + text(last, 300)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, bytes]]:
    """A small store with an object of each kind, its points and their content. Checks leave no stamps there."""
    monkeypatch.setattr("mover.store.store.write_stamps", lambda *_: None)
    path = tmp_path / "store"
    store = Store.create(path)
    back_up(store, small_disk(7), 0, "vm0")
    points = {back_up(store, small_disk(number), number + 1, f"vm{number}"): small_disk(number) for number in range(2)}
    add_notes(store)
    for file in files_of(path):
        file.chmod(0o600)
    return path, points


def judge(
    path: Path,
    points: dict[str, bytes],
    open_store: Callable[[Path], Store] = Store.open,
    checks: Sequence[bool] = (False, True),
) -> bool:
    """Whether `verify` finds damage, fast and deep. Whatever restores is right, and only our errors come out."""
    try:
        store = open_store(path)
        for point in store.readable_points()[0]:
            if point.id in points:
                disk = point.record.disks[0]
                with suppress(StoreDamagedError):
                    assert read_disk(store, disk.root, disk.size) == points[point.id]
        found = {bool(list(open_store(path).verify(deep=deep))) for deep in checks}
    except MoverError:
        return True
    # What one check finds in the packs the other finds, too.
    assert len(found) == 1
    return found == {True}


def guarded(path: Path) -> list[Path]:
    """Every object but leases: what is in those is for people."""
    return [file for file in files_of(path) if "lease" not in file.parts]


def needed(path: Path) -> list[Path]:
    """The objects that nobody takes away but who forgets and prunes."""
    return [file for file in guarded(path) if file.relative_to(path).parts[0] in ("store.json", *LASTING)]


LASTING = ("packs", "index", "points")
KINDS = {*LASTING, "store.json", "scrub", "trash", "partial", "damage", "cond", "lease"}


def places_in(path: Path, file: Path, step: int, rng: random.Random) -> set[int]:
    """The bytes to be flipped: every so many; fewer where one checksum is over the whole object."""
    if step > 1 and file.relative_to(path).parts[0] not in ("packs", "index"):
        step *= 4
    length = file.stat().st_size
    return {*range(rng.randrange(step), length, step), 0, length - 1}


def test_every_flipped_byte_is_found(stored: tuple[Path, dict[str, bytes]]) -> None:
    path, points = stored
    assert {file.relative_to(path).parts[0] for file in files_of(path)} == KINDS
    assert not judge(path, points)
    rng = random.Random(1)
    for file in guarded(path):
        intact = file.read_bytes()
        for at in places_in(path, file, STEP, rng):
            changed = bytearray(intact)
            changed[at] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            assert judge(path, points), f"byte {at} of {file.relative_to(path)} was flipped, and nobody noticed"
        file.write_bytes(intact)
    assert not judge(path, points)


def test_truncated_emptied_missing_and_swapped_objects_are_found(stored: tuple[Path, dict[str, bytes]]) -> None:
    path, points = stored
    files = guarded(path)
    for file in files:
        intact = file.read_bytes()
        for left in (b"", intact[:1], intact[: len(intact) // 2], intact[:-1], intact + b"\0", bytes(len(intact))):
            file.write_bytes(left)
            assert judge(path, points), f"{file.relative_to(path)} was cut to {len(left)} bytes, and nobody noticed"
        file.write_bytes(intact)
    for file in needed(path):
        intact = file.read_bytes()
        file.unlink()
        assert judge(path, points), f"{file.relative_to(path)} was removed, and nobody noticed"
        for other in files:
            if other != file and other.suffix == file.suffix and other.parts[-4:-2] == file.parts[-4:-2]:
                shutil.copyfile(other, file)
                assert judge(path, points), f"{file.relative_to(path)} was replaced, and nobody noticed"
        file.write_bytes(intact)
    assert not judge(path, points)


@pytest.mark.parametrize("pattern", ["packs/*/*/*.d", "packs/*/*/*.m", "points/*", "scrub/*"])
def test_objects_that_changed_places_are_found(stored: tuple[Path, dict[str, bytes]], pattern: str) -> None:
    """Each of the two is whole, and none is missing."""
    path, points = stored
    first, second, *_ = sorted(path.glob(pattern))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert judge(path, points)


def one(path: Path, pattern: str) -> Path:
    """The first file that matches, writable."""
    file = sorted(path.glob(pattern))[0]
    file.chmod(0o600)
    return file


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_damage_names_the_points_that_suffer(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = Store.create(path)
    first = back_up(store, noise("a"), 1)
    both = [back_up(store, noise("b"), 2), back_up(store, noise("b") + noise("a"), 3)]
    packs = sorted((path / "packs").glob("*/*/000000.d"), key=lambda file: file.parent.name)
    packs[1].chmod(0o600)
    flip(packs[1], 5000)
    for deep in (False, True):
        (damage,) = Store.open(path).verify(deep=deep)
        assert (damage.object, damage.points) == (str(packs[1].relative_to(path)), tuple(sorted(both)))
        assert "1 of 1 records" in damage.reason
        assert list(Store.open(path).verify([store.point(first)], deep=deep)) == []
        assert [found.object for found in Store.open(path).verify([store.point(both[1])])] == [damage.object]
    with pytest.raises(StoreDamagedError, match=damage.object):
        restore(Store.open(path), both[0])
    assert restore(Store.open(path), first) == noise("a")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def end_flipped(file: Path) -> None:
    flip(file, -1)


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("packs/*/*/*.d", emptied),
        ("packs/*/*/*.d", Path.unlink),
        ("packs/*/*/*.m", emptied),
        ("index/0/*", emptied),
        ("index/0/*", end_flipped),
        ("index/0/*", Path.unlink),
    ],
)
def test_what_is_lost_is_stored_again(tmp_path: Path, pattern: str, harm: Callable[[Path], None]) -> None:
    """An empty pack under a good name is no place to deduplicate against."""
    path = tmp_path / "store"
    point = back_up(Store.create(path), noise("a") + text("b"))
    harm(one(path, pattern))
    with pytest.raises(StoreDamagedError):
        restore(Store.open(path), point)
    again = back_up(Store.open(path), noise("a") + text("b"), 1)
    assert restore(Store.open(path), again) == noise("a") + text("b")
    assert restore(Store.open(path), point) == noise("a") + text("b"), "the old point is whole again, too"


def test_damage_of_verified_points_is_by_pack(stored: tuple[Path, dict[str, bytes]]) -> None:
    path, points = stored
    one(path, "packs/*/*/*.d").unlink()
    store = Store.open(path)
    found: list[Damage] = [damage for point in points for damage in store.verify([store.point(point)])]
    assert found
    assert all(damage.object.startswith("packs/") for damage in found)


def test_stores_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreMissingError):
        Store.open(tmp_path)
    path = tmp_path / "store"
    back_up(Store.create(path), b"x")
    config = one(path, "store.json")
    text = config.read_bytes()
    for harm in (b"", b"{", b"[]", b"null", b"1" * 5000, b"{" * 70000, text[:-1], text.replace(b"65536", b"65537")):
        config.write_bytes(harm)
        with pytest.raises(StoreDamagedError):
            Store.open(path)
    config.unlink()
    with pytest.raises(StoreDamagedError, match="holds restore points but no"):
        Store.open(path)


def describe(path: Path, **changes: object) -> None:
    """Give the store at `path` another description, as another version might write it."""
    file = one(path, "store.json")
    fields = {**json.loads(file.read_bytes()), **changes}
    del fields["check"]
    file.write_bytes(config._canonical({**fields, "check": config._check(fields)}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("aead", "aes"),
        ("hash", "blake4"),
        ("fanout", 256),
        ("features", {"read": ["moon"]}),
        ("features", {"rescue": ["moon"]}),
        ("features", {"read": "moon"}),
        ("features", []),
    ],
)
def test_newer_stores_are_left_alone(tmp_path: Path, key: str, value: object) -> None:
    Store.create(tmp_path / "store")
    describe(tmp_path / "store", **{key: value})
    with pytest.raises(FormatTooNewError):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("kind", ["write", "prune"])
def test_what_is_not_known_is_not_done(tmp_path: Path, kind: str) -> None:
    """A feature that one has to know to prune is in the way of no backup, and none of these of a restore."""
    path = tmp_path / "store"
    point = back_up(Store.create(path), noise("a"))
    describe(path, features={"read": [], "write": [], "prune": [], kind: ["moon"]})
    before = {file: file.read_bytes() for file in files_of(path)}
    store = Store.open(path)
    assert restore(store, point) == noise("a")
    refused: list[Callable[[], object]] = [
        store.prune,
        store.would_prune,
        store.repair,
        lambda: store.forget(store.points()),
    ]
    for verb in refused if kind == "prune" else [*refused, store.writer]:
        with pytest.raises(FormatTooNewError, match="moon"):
            verb()
    if kind == "write":
        assert list(store.verify()) == []
        assert {file: file.read_bytes() for file in files_of(path)} == before, "not even a stamp is put"
    else:
        assert restore(store, back_up(store, noise("b"), 1)) == noise("b")


def test_chunks_of_wrong_length_do_not_fit(tmp_path: Path) -> None:
    """A root with another size than it was made for: an error, not other bytes."""
    store = small_packs(Store.create(tmp_path / "store"))
    with store.writer() as writer:
        root = write_disk(writer, noise("a", 3 * CHUNK + 100))
        writer.commit(point_of(root, 3 * CHUNK + 100))
    for size in (3 * CHUNK + 101, 3 * CHUNK + 99, 4 * CHUNK):
        with pytest.raises(StoreDamagedError):
            store.disk(root, size).read_into(0, memoryview(bytearray(size)))
    with pytest.raises(ValueError, match="not within"):
        store.disk(root, 100).read_into(99, memoryview(bytearray(2)))


def test_a_damaged_point_is_in_the_way_of_no_other(tmp_path: Path) -> None:
    """Only which one is the newest cannot be told then."""
    store = Store.create(tmp_path)
    points = {back_up(store, noise(number), number, f"vm{number}"): number for number in range(3)}
    ids = list(points)
    flip(one(tmp_path, f"points/{store.point(ids[1]).name.key.removeprefix('points/')}"), 9)
    for id in (ids[0], ids[2]):
        assert restore(Store.open(tmp_path), id) == noise(points[id])
        assert Store.open(tmp_path).point(id[:6]).id == id
    for wanted in ("latest", "vm1", "vm2", ids[1]):
        with pytest.raises(StoreDamagedError, match="points/"):
            Store.open(tmp_path).point(wanted)


def test_asking_for_points_that_are_not_there(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    for wanted in ("latest", "abc", ""):
        with pytest.raises(NotFoundError):
            store.point(wanted)
