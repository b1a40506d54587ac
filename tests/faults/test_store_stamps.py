"""Routine checks: what was found whole is stamped, and what waits longest is checked next."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mover.errors import StoreDamagedError
from mover.store import Store
from mover.store.segment import HEADER_LENGTH, ROW_LENGTH
from mover.store.stamps import Stamp, write_stamps
from protocol.secret import Secret
from tests import fork_server
from tests.crypt_fixtures import CHEAP
from tests.store_fixtures import CHUNK, back_up, files_of, noise, point_of, restore, small_packs, text, write_disk

PASSPHRASE = Secret("correct horse")
CHUNKS = 16


def filled(path: Path, passphrase: Secret | None = None, points: int = 4) -> list[str]:
    """A store whose points share nothing and have a pack each; their ids, oldest first."""
    store = small_packs(Store.create(path, passphrase=passphrase, cost=CHEAP), CHUNKS * CHUNK // 2)
    return [back_up(store, noise(n, CHUNKS * CHUNK), float(n), f"vm{n}") for n in range(points)]


def stamps(path: Path) -> list[str]:
    return sorted(file.name for file in files_of(path / "scrub")) if (path / "scrub").exists() else []


def due(path: Path, older_than: float, passphrase: Secret | None = None, *, deep: bool = False) -> list[str]:
    return [point.id for point in Store.open(path, passphrase=passphrase).due(older_than, deep=deep)]


def age(path: Path, point: str, seconds: int, passphrase: Secret | None = None) -> None:
    """Stamp a point as of some time ago, as a check of then would have."""
    store = Store.open(path, passphrase=passphrase)
    for file in files_of(path / "scrub"):
        if file.name.startswith(f"{store.point(point).name.wid.hex()}."):
            file.unlink()
    write_stamps(store._backend, store._identity, [store.point(point)], Stamp(int(time.time()) - seconds, False))


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_what_was_found_whole_is_not_due(tmp_path: Path, passphrase: Secret | None) -> None:
    ids = filled(tmp_path, passphrase)
    assert due(tmp_path, 0, passphrase) == ids, "never checked, oldest first"
    store = Store.open(tmp_path, passphrase=passphrase)
    assert list(store.verify([store.point(ids[1])])) == []
    assert due(tmp_path, 3600, passphrase) == [ids[0], ids[2], ids[3]]
    assert list(store.verify()) == []
    assert due(tmp_path, 3600, passphrase) == []
    assert due(tmp_path, 3600, passphrase, deep=True) == ids, "only a deep check counts as one"
    assert list(store.verify(deep=True)) == []
    assert due(tmp_path, 3600, passphrase, deep=True) == []
    assert len(stamps(tmp_path)) == len(ids), "the newest of each point"
    age(tmp_path, ids[2], 8 * 86400, passphrase)
    age(tmp_path, ids[3], 9 * 86400, passphrase)
    assert due(tmp_path, 7 * 86400, passphrase) == [ids[3], ids[2]]


DAY = 86400


@pytest.mark.parametrize("deep", [False, True], ids=["fast", "deep"])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_a_check_by_a_clock_that_ran_ahead_counts_for_nothing(
    tmp_path: Path, passphrase: Secret | None, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points stay due, and the next check by a clock that is right puts its stamp in place of the wrong one."""
    ids = filled(tmp_path, passphrase, points=2)
    right = time.time

    def check_after(seconds: int, *, deep: bool = False) -> None:
        monkeypatch.setattr("mover.store.store.time.time", lambda: right() + seconds)
        assert list(Store.open(tmp_path, passphrase=passphrase).verify(deep=deep)) == []

    def due_after(seconds: int, *, deep: bool = False) -> list[str]:
        monkeypatch.setattr("mover.store.store.time.time", lambda: right() + seconds)
        return due(tmp_path, 7 * DAY, passphrase, deep=deep)

    check_after(20 * 365 * DAY, deep=deep)
    assert due_after(0) == due_after(0, deep=True) == ids
    check_after(0)
    assert len(stamps(tmp_path)) == len(ids), "the wrong ones are gone"
    assert due_after(0) == []
    assert due_after(0, deep=True) == ids
    assert due_after(8 * DAY) == ids


def test_a_check_by_a_clock_that_is_a_little_ahead_counts(tmp_path: Path) -> None:
    """Machines differ by some hours, and nothing is checked twice for that."""
    ids = filled(tmp_path, points=1)
    age(tmp_path, ids[0], -DAY // 2)
    assert due(tmp_path, 0) == []
    age(tmp_path, ids[0], -2 * DAY)
    assert due(tmp_path, 0) == ids


def test_a_check_by_a_clock_that_is_behind_leaves_what_is_to_be_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To such a clock all others ran ahead: what it does away with costs a check, and is not taken for one."""
    ids = filled(tmp_path, points=1)
    assert list(Store.open(tmp_path).verify(deep=True)) == []
    right = time.time
    monkeypatch.setattr("mover.store.store.time.time", lambda: right() - 365 * DAY)
    assert list(Store.open(tmp_path).verify()) == []
    assert due(tmp_path, 7 * DAY) == []
    monkeypatch.undo()
    assert due(tmp_path, 7 * DAY) == ids
    assert list(Store.open(tmp_path).verify()) == []
    assert due(tmp_path, 7 * DAY) == []


def test_a_point_that_suffers_is_not_stamped(tmp_path: Path) -> None:
    ids = filled(tmp_path)
    pack = sorted((tmp_path / "packs").rglob("*.d"), key=lambda path: path.stat().st_mtime_ns)[0]
    data = bytearray(pack.read_bytes())
    data[3000] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    (damage,) = Store.open(tmp_path).verify()
    (hurt,) = damage.points
    assert damage.disks == ((hurt, "0"),)
    assert due(tmp_path, 3600) == [hurt]
    assert hurt in ids


@pytest.mark.parametrize("routine", [False, True], ids=["everything", "routine"])
def test_no_point_that_suffers_is_stamped_however_much_is_lost(tmp_path: Path, routine: bool) -> None:
    """What is lost is told apart up to a limit only; whom it hits is not."""
    store = Store.create(tmp_path)
    many = b"".join(text(("a", number)) for number in range(1100))
    few = b"".join(text(("b", number)) for number in range(3))
    with store.writer() as writer:
        for disk in (many, few):
            writer.seal(memoryview(disk))
        # As a run does now and then: the chunks are in one segment, the pages in the next.
        writer.flush()
        ids = [
            writer.commit(point_of(write_disk(writer, disk), len(disk), float(number), f"vm{number}"))
            for number, disk in enumerate((many, few))
        ]
    chunks, *_ = sorted(files_of(tmp_path / "index"))
    chunks.chmod(0o600)
    chunks.write_bytes(b"")
    checked = Store.open(tmp_path)
    found = list(checked.verify(checked.points() if routine else None, routine=routine))
    assert 1000 < len(found) < 1010
    assert {point for damage in found for point in damage.points} == set(ids)
    for id in ids:
        with pytest.raises(StoreDamagedError):
            restore(Store.open(tmp_path), id)
    assert due(tmp_path, 3600) == ids


def row_of(file: Path, id: bytes) -> int:
    """Where in an index segment the row of a record begins."""
    data = file.read_bytes()
    count = int.from_bytes(data[-128:-120], "little")
    columns = HEADER_LENGTH + 8 * count
    (row,) = (
        number
        for number in range(count)
        if data[HEADER_LENGTH + 8 * number :][:8] == id[:8] and data[columns + ROW_LENGTH * number :][:24] == id[8:]
    )
    return columns + ROW_LENGTH * row


@pytest.mark.parametrize("what", ["chunk", "page"])
@pytest.mark.parametrize("field", [0, 24, 28, 32, 36], ids=["id", "pack", "offset", "length", "meta"])
@pytest.mark.parametrize("deep", [False, True], ids=["fast", "deep"])
def test_a_wrong_byte_in_the_index_tells_whom_it_hits(tmp_path: Path, what: str, field: int, deep: bool) -> None:
    """The packs are all whole, but a restore does not find there what it needs."""
    store = Store.create(tmp_path)
    disks = [noise(number, 3 * CHUNK) for number in range(2)]
    with store.writer() as writer:
        roots = [write_disk(writer, disk) for disk in disks]
        ids = [
            writer.commit(point_of(root, 3 * CHUNK, float(number), f"vm{number}")) for number, root in enumerate(roots)
        ]
    segment, *_ = sorted(files_of(tmp_path / "index"))
    wanted = roots[0] if what == "page" else store._identity.chunk_id(memoryview(disks[0])[:CHUNK])
    at = row_of(segment, wanted) + field
    whole = segment.read_bytes()
    segment.chmod(0o600)
    segment.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

    found = list(Store.open(tmp_path).verify(deep=deep))
    with pytest.raises(StoreDamagedError):
        restore(Store.open(tmp_path), ids[0])
    assert restore(Store.open(tmp_path), ids[1]) == disks[1]
    assert f"index/0/{segment.name}" in [damage.object for damage in found]
    assert {point for damage in found for point in damage.points} == {ids[0]}
    assert {pair for damage in found for pair in damage.disks} == {(ids[0], "0")}
    assert due(tmp_path, 3600, deep=deep) == ids, "with wrong rows in the index nobody passes for whole"

    Store.open(tmp_path).repair()
    assert list(Store.open(tmp_path).verify(deep=deep)) == []
    assert due(tmp_path, 3600, deep=deep) == []
    assert restore(Store.open(tmp_path), ids[0]) == disks[0]


def test_a_limit_takes_what_waits_longest(tmp_path: Path) -> None:
    ids = filled(tmp_path)
    seen = []
    for _ in ids:
        store = Store.open(tmp_path)
        before = set(due(tmp_path, 3600))
        assert list(store.verify(store.due(3600), limit=0.2)) == []
        seen += sorted(before - set(due(tmp_path, 3600)))
    assert seen == ids


def test_stamps_of_points_that_are_given_up_go_first(tmp_path: Path) -> None:
    """A stamp without its point says that the point was lost: there is none of a point that was forgotten."""
    filled(tmp_path)
    store = small_packs(Store.open(tmp_path))
    back_up(store, noise("again", CHUNK), 9.0, "vm0")
    assert list(store.verify()) == []
    assert len(stamps(tmp_path)) == 5
    store.forget([point for point in store.points() if point.record.created == 0.0])
    assert list(store.verify()) == [], "it is in the trash"
    store.prune()
    assert len(stamps(tmp_path)) == len(store.points()) == 4
    assert list(store.verify()) == []


@pytest.mark.parametrize("checked", [False, True], ids=["as committed", "once checked"])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_a_point_that_is_missing_is_named(tmp_path: Path, passphrase: Secret | None, checked: bool) -> None:
    ids = filled(tmp_path, passphrase)
    store = Store.open(tmp_path, passphrase=passphrase)
    if checked:
        assert list(store.verify()) == []
    name = store.point(ids[1]).name
    (tmp_path / name.key).unlink()
    for _ in range(2):
        (damage,) = Store.open(tmp_path, passphrase=passphrase).verify()
        assert (damage.object, damage.points) == (name.key, (ids[1],))
        assert "missing" in damage.reason
    dry = store.repair(dry=True)
    report = store.repair()
    assert [found for found, _ in report.helpless] == [found for found, _ in dry.helpless] == [name.key]
    assert list(store.verify()) == [], "a repair has told of it"


def test_points_that_changed_places_are_named(tmp_path: Path) -> None:
    """In a plain store nothing else binds a point to its name."""
    ids = filled(tmp_path)
    store = Store.open(tmp_path)
    first, second = (tmp_path / store.point(id).name.key for id in ids[:2])
    whole = first.read_bytes()
    for file, data in ((first, second.read_bytes()), (second, whole)):
        file.unlink()
        file.write_bytes(data)
    found = list(Store.open(tmp_path).verify())
    assert {(damage.object, damage.points) for damage in found} == {
        (f"points/{first.name}", (ids[0],)),
        (f"points/{second.name}", (ids[1],)),
    }
    assert found == list(Store.open(tmp_path).verify()), "a check does not do away with what it has found"


def test_a_point_that_is_given_up_while_it_is_checked(tmp_path: Path) -> None:
    """Its stamp comes too late, and goes again: nobody is told of a loss."""
    filled(tmp_path)
    store = small_packs(Store.open(tmp_path))
    back_up(store, noise("again", CHUNK), 9.0, "vm0")
    checking = store.verify()
    points = store.points()
    store.forget(points[:1])

    def prune_now(done: int, total: int) -> None:
        if done == total:
            Store.open(tmp_path).prune()

    assert list(checking) == []
    assert list(store.verify(points[:1], progress=prune_now)) == []
    assert len(stamps(tmp_path)) == len(Store.open(tmp_path).points()) == 4
    assert list(Store.open(tmp_path).verify()) == []


def test_a_damaged_point_does_not_keep_the_others_from_being_checked(tmp_path: Path) -> None:
    ids = filled(tmp_path)
    store = Store.open(tmp_path)
    file = tmp_path / store.point(ids[1]).name.key
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.unlink()
    file.write_bytes(data)
    command = [sys.executable, "-m", "mover", "verify", str(tmp_path), "--progress", "none"]
    done = fork_server.run([*command, "--older-than", "7d", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 30
    assert [damage["object"] for damage in json.loads(done.stdout)["damages"]] == [f"points/{file.name}"]
    assert due(tmp_path, 3600) == []


def test_a_stamp_that_somebody_made_up_does_not_count(tmp_path: Path) -> None:
    ids = filled(tmp_path, PASSPHRASE)
    store = Store.open(tmp_path, passphrase=PASSPHRASE)
    list(store.verify())
    for file in files_of(tmp_path / "scrub"):
        if ".0." in file.name[33:]:
            continue
        content = file.read_bytes()
        file.unlink()
        wid, number, moment, how = file.name.split(".")
        file.with_name(f"{wid}.{number}.{int(moment) + 10**6}.{how}").write_bytes(content)
    assert due(tmp_path, 3600, PASSPHRASE) == ids


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_a_check_is_a_check(tmp_path: Path) -> None:
    filled(tmp_path)
    tmp_path.chmod(0o555)
    try:
        assert list(Store.open(tmp_path).verify()) == []
    finally:
        tmp_path.chmod(0o755)


def test_the_verb(tmp_path: Path) -> None:
    ids = filled(tmp_path)

    def mover(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mover", "verify", str(tmp_path), "--progress", "none", *arguments]
        return fork_server.run(command, capture_output=True, text=True, check=False)

    done = mover("--older-than", "7d", "--limit", "30%", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"damages": []})
    assert due(tmp_path, 3600) == ids[2:]
    assert mover("--older-than", "7d").returncode == 0
    assert due(tmp_path, 3600) == []
    assert mover("--limit", "10").returncode == 2
    assert mover("--limit", "10%", "--point", "latest").returncode == 2
