"""Damage to encrypted stores, by chance and on purpose: found, named, and never restored."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_64_digest

from mover.errors import PassphraseError, StoreDamagedError, StoreMissingError
from mover.store import Store
from mover.store.directory import DirectoryBackend
from tests.crypt_fixtures import CHEAP, PASSPHRASE, create
from tests.faults import test_store_damage as damage
from tests.power_cut import CutDisk, RecordingOps
from tests.store_fixtures import (
    CHUNK,
    add_notes,
    back_up,
    files_of,
    noise,
    point_of,
    restore,
    small_packs,
    text,
    write_disk,
)

STEP = int(os.environ.get("MOVER_FLIP_STEP", "17")) * 4


def small_disk(last: int = 0) -> bytes:
    return b"".join(text(number, CHUNK) for number in range(3)) + bytes(CHUNK) + text(last, 300)


def opened(path: Path) -> Store:
    return Store.open(path, passphrase=PASSPHRASE, encrypted=True)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, bytes]]:
    """A small encrypted store with an object of each kind, two passphrases, and the points' content."""
    monkeypatch.setattr("mover.store.store.write_stamps", lambda *_: None)
    path = tmp_path / "store"
    store = create(path)
    back_up(store, small_disk(7), 0, "vm0")
    points = {back_up(store, small_disk(number), number + 1, f"vm{number}"): small_disk(number) for number in range(2)}
    add_notes(store)
    store.add_passphrase(type(PASSPHRASE)("another"), cost=CHEAP)
    for file in files_of(path):
        file.chmod(0o600)
    return path, points


def judge(path: Path, points: dict[str, bytes], *, deep: bool = True) -> bool:
    return damage.judge(path, points, opened, (deep,))


def test_every_flipped_byte_is_found(stored: tuple[Path, dict[str, bytes]]) -> None:
    path, points = stored
    assert not judge(path, points)
    rng = random.Random(1)
    for file in damage.guarded(path):
        intact = file.read_bytes()
        for at in damage.places_in(path, file, STEP, rng):
            changed = bytearray(intact)
            changed[at] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            assert judge(path, points, deep=bool(at & 1)), f"byte {at} of {file.relative_to(path)} was flipped"
        file.write_bytes(intact)
    assert not judge(path, points)


def test_truncated_emptied_missing_and_swapped_objects_are_found(stored: tuple[Path, dict[str, bytes]]) -> None:
    path, points = stored
    files = damage.guarded(path)
    for file in files:
        intact = file.read_bytes()
        for left in (b"", intact[: len(intact) // 2], intact[:-1], intact + b"\0"):
            file.write_bytes(left)
            assert judge(path, points), f"{file.relative_to(path)} was cut to {len(left)} bytes, and nobody noticed"
        if file.parent.name != "keys":  # one key twice: whoever knows its passphrase gets in, and nobody else
            for other in files:
                if other != file and (other.parts[-3:-1] == file.parts[-3:-1] or other.suffix == file.suffix != ""):
                    shutil.copyfile(other, file)
                    assert judge(path, points), f"{file.relative_to(path)} was replaced, and nobody noticed"
        file.write_bytes(intact)
    for file in damage.needed(path):
        intact = file.read_bytes()
        file.unlink()
        assert judge(path, points), f"{file.relative_to(path)} was removed, and nobody noticed"
        file.write_bytes(intact)
    assert not judge(path, points)


def two_points(path: Path) -> tuple[list[Path], list[str]]:
    store = create(path)
    points = [back_up(store, noise(number), number) for number in range(2)]
    files = sorted((path / "points").iterdir())
    for file in files_of(path):
        file.chmod(0o600)
    return files, points


def test_points_that_were_swapped_are_named(tmp_path: Path) -> None:
    files, _ = two_points(tmp_path)
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    listed, damaged = opened(tmp_path).readable_points()
    assert not listed
    assert {damage.object for damage in damaged} == {f"points/{file.name}" for file in files}
    assert all("another one stands in its place" in damage.reason for damage in damaged)
    with pytest.raises(StoreDamagedError, match="points/"):
        opened(tmp_path).points()


def test_what_a_name_held_in_another_store_is_not_taken(tmp_path: Path) -> None:
    """The same names under another key: a store that was swapped for one of before, piece by piece."""
    files, points = two_points(tmp_path / "store")
    other, _ = two_points(tmp_path / "other")
    shutil.copyfile(other[0], files[0])
    assert [damage.object for damage in opened(tmp_path / "store").readable_points()[1]] == [f"points/{files[0].name}"]
    assert [point.id for point in opened(tmp_path / "store").readable_points()[0]] == points[1:]


def test_a_record_put_in_the_place_of_another_with_all_checksums_right_is_found(tmp_path: Path) -> None:
    """Checksums of records need no key; whoever can write to the store can make them fit."""
    point = back_up(create(tmp_path), noise(0) + noise(1))
    (pack,) = tmp_path.glob("packs/*/*/*.d")
    data = bytearray(pack.read_bytes())
    length = int.from_bytes(data[68:72], "little")
    first, second = 64, 64 + 56 + length
    assert data[second + 4 : second + 8] == data[first + 4 : first + 8], "two of the same length"
    data[first + 48 : second] = data[second + 48 : second + 56 + length]
    assert data[first + 48 : first + 56] == xxh3_64_digest(bytes(data[first + 56 : second]))[::-1]
    pack.chmod(0o600)
    pack.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="another one stands in its place"):
        restore(opened(tmp_path), point)
    (damage,) = opened(tmp_path).verify(deep=True)
    assert damage.points == (point,)


def test_a_store_of_before_is_whole_and_lacks_what_came_later(tmp_path: Path) -> None:
    """All of it rolled back at once: nothing in it can tell, so this is what to expect, and docs say so."""
    store = create(tmp_path / "store")
    first = back_up(store, noise(0), 0)
    shutil.copytree(tmp_path / "store", tmp_path / "before")
    back_up(store, noise(1), 1)
    assert [point.id for point in opened(tmp_path / "before").points()] == [first]
    assert list(opened(tmp_path / "before").verify(deep=True)) == []


def test_a_point_brought_back_after_its_packs_are_gone_is_named(tmp_path: Path) -> None:
    store = create(tmp_path)
    back_up(store, noise(0), 0)
    (old,) = (tmp_path / "points").iterdir()
    kept = old.read_bytes()
    back_up(store, noise(1), 1)
    store.forget(store.points()[:1])
    store.prune()
    assert not old.exists()
    old.write_bytes(kept)
    back = opened(tmp_path)
    assert next(iter(back.verify())).points == (back.points()[0].id,)
    with pytest.raises(StoreDamagedError):
        restore(back, back.points()[0].id)
    assert restore(back, "latest") == noise(1)


def test_prune_merge_and_many_writers_work_as_in_a_plain_store(tmp_path: Path) -> None:
    store = small_packs(create(tmp_path), CHUNK)
    points = {}
    for number in range(12):
        data = noise(number % 5) + text(number) + bytes(CHUNK) + noise(number, 100)
        points[back_up(store, data, number)] = data
    assert len(list(tmp_path.glob("index/*/*"))) < 12, "segments were merged"
    gone = store.forget([point for point in store.points() if point.record.created % 3])
    for point in gone:
        del points[point.id]
    assert store.prune(min_live=0.99).deleted > 0
    again = opened(tmp_path)
    assert {point: restore(again, point) for point in points} == points
    assert list(opened(tmp_path).verify(deep=True)) == []


def test_nothing_that_is_stored_can_be_read_in_the_objects(tmp_path: Path) -> None:
    """Of what is written, only names of hosts in leases, lengths and times are not random to who has no key."""
    secret = b"the quick brown fox has a secret"
    store = create(tmp_path, "none")
    data = (secret * (CHUNK // len(secret)) + noise(1, 3 * CHUNK))[: 4 * CHUNK - 100]
    with store.writer() as writer:
        blob = writer.put_blob(b"metadata " + secret)
        root = write_disk(writer, data)
        writer.commit(point_of(root, len(data), 1.0, "vm-with-a-name", blob))
    ids = [root, *(store._identity.chunk_id(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))]
    secrets = (secret, noise(1)[:32], b"vm-with-a-name")
    for file in files_of(tmp_path):
        stored = file.read_bytes()
        # Words so long that chance does not write them: a point's key, and the head of a page of four chunks.
        for word in (*secrets, b"vdi_uuid", b"PG1\0\x0f\0\0\0", PASSPHRASE.reveal().encode()):
            assert word not in stored, f"{word!r} in {file}"
        if "packs" not in file.parts:
            assert all(id not in stored and id.hex().encode() not in stored for id in ids), "an id outside of a pack"
    plain_ids = [Store.create(tmp_path / f"plain{n}")._identity.chunk_id(data[:CHUNK]) for n in range(2)]
    assert ids[1] not in plain_ids


def test_the_wrong_passphrase_reads_nothing(tmp_path: Path) -> None:
    back_up(create(tmp_path), noise(0))
    with pytest.raises(PassphraseError) as caught:
        Store.open(tmp_path, passphrase=type(PASSPHRASE)("wrong-and-private"))
    assert "wrong-and-private" not in str(caught.value) + caught.value.hint


def test_a_power_cut_leaves_an_encrypted_store_as_whole_as_a_plain_one(tmp_path: Path) -> None:
    """From the making of the key on: a store that exists opens, and has every point whose commit returned."""
    ops = RecordingOps()
    backend = DirectoryBackend(str(tmp_path / "store"), ops)
    backend.make_root()
    store = small_packs(Store.create(backend, passphrase=PASSPHRASE, cost=CHEAP), CHUNK)
    ops.note("made")
    point = back_up(store, small_disk())
    ops.note(point)
    disk, rng, noted = CutDisk(honest=True), random.Random(1), []
    for op in ops.log:
        disk.apply(op)
        noted += [op.path] if op.call == "note" else []
        for kept in (0.0, rng.random()):
            left = tmp_path / "left"
            left.mkdir()
            disk.cut(rng, kept, str(tmp_path), left)
            try:
                found = {one.id: restore(opened(left / "store"), one.id) for one in opened(left / "store").points()}
            except StoreMissingError:
                assert "made" not in noted
            else:
                assert found in ({point: small_disk()}, *([] if point in noted else [{}]))
                assert list(opened(left / "store").verify(deep=True)) == []
            shutil.rmtree(left)
    assert noted == ["made", point]


def sealed_in(folder: Path) -> Iterator[tuple[bytes, bytes, bytes]]:
    """What was sealed under which key: what names the key but for the store's own, the nonce, and what came of it."""
    for file in files_of(folder):
        data = file.read_bytes()
        if file.parent.name == "keys":
            fields = json.loads(data)
            wrapped = bytes.fromhex(fields["wrapped"])
            yield bytes.fromhex(fields["salt"]), wrapped[:12], wrapped
        elif "packs" in file.parts:
            start, count = int.from_bytes(data[-64:-56], "little"), int.from_bytes(data[-52:-48], "little")
            for entry in range(start, start + 48 * count, 48):
                at, length = (int.from_bytes(data[entry + to : entry + to + 4], "little") for to in (32, 36))
                payload = data[at + 56 : at + 56 + length]
                yield data[entry : entry + 32], payload[:12], payload
        elif data[:6] == b"MVSEAL":
            yield data[8:32], b"", data


def test_no_key_meets_a_nonce_twice(tmp_path: Path) -> None:
    """In the life of a store and of a copy of it that goes its own way: writers that know nothing of each other store
    the same, one is aborted and begins anew, segments are merged, records are moved, passphrases are added."""
    here, there = tmp_path / "here", tmp_path / "there"
    seen: dict[tuple[bytes, bytes], bytes] = {}
    disk = small_disk() + noise("a", 2 * CHUNK)

    def look() -> int:
        for folder in (here, there):
            for key, nonce, sealed in sealed_in(folder) if folder.exists() else ():
                assert seen.setdefault((key, nonce), sealed) == sealed, "one key and nonce for two different things"
        return len(seen)

    back_up(small_packs(create(here), CHUNK), disk, 0)
    look()
    shutil.copytree(here, there)
    for folder in (here, there):
        store = small_packs(opened(folder), CHUNK)
        with store.writer() as one, opened(folder).writer() as other:
            for writer in (one, other):
                root = write_disk(writer, disk + noise("b"))
            other.commit(point_of(root, len(disk) + CHUNK, 1))
        with pytest.raises(RuntimeError), store.writer() as writer:
            write_disk(writer, noise("c", 3 * CHUNK))
            raise RuntimeError("the pool is gone")
        look()
        for number in range(2, 12):
            back_up(small_packs(opened(folder), CHUNK), noise("c", 3 * CHUNK) + noise(number), number)
        look()
        opened(folder).add_passphrase(type(PASSPHRASE)("another"), cost=CHEAP)
        opened(folder).forget(opened(folder).points()[:6])
        opened(folder).prune(min_live=0.99)
        list(opened(folder).verify())
        assert list(opened(folder).verify(deep=True)) == []
    assert look() > 100
