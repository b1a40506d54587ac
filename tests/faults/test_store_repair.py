"""Damage mended: the index from the packs, good records from bad packs; the next backup does the rest."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EIO, ETIMEDOUT
from pathlib import Path
from typing import Any

import pytest

from mover.errors import FencedError, StoreDamagedError, StoreIoError
from mover.store import Patience, Store
from mover.store.directory import DirectoryBackend
from mover.store.repair import Repair
from protocol.secret import Secret
from tests import fork_server
from tests.crypt_fixtures import CHEAP
from tests.store_fixtures import CHUNK, back_up, files_of, noise, point_of, read_disk, small_packs, text, write_disk

STATES = [
    b"".join(noise(n) if n % 3 else text(n) for n in range(60)),
    b"".join(noise(n) if n % 3 else text(n) for n in range(40)) + bytes(5 * CHUNK) + noise("end", 15 * CHUNK),
]
PASSPHRASE = Secret("correct horse")


@pytest.fixture(params=[None, PASSPHRASE], ids=["plain", "encrypted"])
def passphrase(request: pytest.FixtureRequest) -> Secret | None:
    return request.param  # type: ignore[no-any-return]


def filled(path: Path, passphrase: Secret | None = None) -> list[str]:
    """A store with packs of 512 KiB and a point for each of `STATES`; the ids of the points."""
    store = small_packs(Store.create(path, passphrase=passphrase, cost=CHEAP), 512 << 10)
    return [back_up(store, data, float(number)) for number, data in enumerate(STATES)]


def opened(path: Path, passphrase: Secret | None = None) -> Store:
    return Store.open(path, passphrase=passphrase)


def packs(path: Path, kind: str = "d") -> list[Path]:
    return sorted((path / "packs").rglob(f"*.{kind}"))


def overwrite(path: Path, at: int, data: bytes) -> None:
    path.chmod(0o644)
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def contents(store: Store) -> list[bytes]:
    return [read_disk(store, disk.root, disk.size) for p in store.points() for disk in p.record.disks]


def is_whole(path: Path, passphrase: Secret | None = None) -> None:
    store = opened(path, passphrase)
    assert list(store.verify(deep=True)) == []
    assert contents(store) == STATES


def test_a_store_that_is_whole_stays_as_it_is(tmp_path: Path, passphrase: Secret | None) -> None:
    filled(tmp_path, passphrase)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    report = opened(tmp_path, passphrase).repair(deep=True)
    assert (report.listed, report.segments, report.emptied, report.losses, report.helpless) == (0, 0, 0, (), ())
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == before


@pytest.mark.parametrize("damage", ["gone", "tables", "columns", "empty"])
def test_the_index_is_made_anew_from_the_packs(tmp_path: Path, passphrase: Secret | None, damage: str) -> None:
    filled(tmp_path, passphrase)
    for segment in (path for path in (tmp_path / "index").rglob("*") if path.is_file()):
        if damage == "gone":
            segment.unlink()
        elif damage == "empty":
            segment.chmod(0o644)
            segment.write_bytes(b"")
        else:
            overwrite(segment, 200 if damage == "columns" else segment.stat().st_size - 100, b"\xff" * 8)
    dry = opened(tmp_path, passphrase).repair(dry=True)
    report = opened(tmp_path, passphrase).repair()
    assert report.listed == dry.listed == len(packs(tmp_path)) + len(packs(tmp_path, "m"))
    assert report.losses == ()
    is_whole(tmp_path, passphrase)


def test_packs_that_no_segment_names_are_listed(tmp_path: Path) -> None:
    """As a run leaves them that was killed before it published."""
    filled(tmp_path)
    before = {path for path in (tmp_path / "index").rglob("*") if path.is_file()}
    had = len(packs(tmp_path)) + len(packs(tmp_path, "m"))
    store = small_packs(Store.open(tmp_path), 128 << 10)
    back_up(store, noise("more", 20 * CHUNK), 9.0)
    for path in {path for path in (tmp_path / "index").rglob("*") if path.is_file()} - before:
        path.unlink()
    assert Store.open(tmp_path).repair().listed == len(packs(tmp_path)) + len(packs(tmp_path, "m")) - had > 1
    with Store.open(tmp_path).writer() as writer:
        assert writer.seal(memoryview(noise("more", 20 * CHUNK))).new == 0


def test_good_records_are_saved_and_lost_ones_come_back(tmp_path: Path, passphrase: Secret | None) -> None:
    first, second = filled(tmp_path, passphrase)
    spoilt = packs(tmp_path)[1]
    overwrite(spoilt, 20_000, bytes(100))
    dry = opened(tmp_path, passphrase).repair(dry=True)
    assert spoilt.exists()
    report = opened(tmp_path, passphrase).repair()
    assert not spoilt.exists()
    assert (report.emptied, report.dropped) == (1, 1)
    assert report.saved >= 5
    assert report.losses == dry.losses
    assert {loss.point for loss in report.losses} == {first, second}
    (extent,) = report.losses[0].extents
    assert extent[1] == report.losses[0].lost == CHUNK
    store = opened(tmp_path, passphrase)
    good = [at for at in range(0, len(STATES[0]), CHUNK) if at != extent[0]]
    disk = store.point(first).record.disks[0]
    view = memoryview(bytearray(CHUNK))
    for at in good:
        store.disk(disk.root, disk.size).read_into(at, view)
        assert view == STATES[0][at : at + CHUNK]
    with pytest.raises(StoreDamagedError):
        store.disk(disk.root, disk.size).read_into(extent[0], view)
    assert store.lost_roots() == {disk.root for point in store.points() for disk in point.record.disks}
    # A backup sees the content again, and with it the old points are whole.
    with store.writer() as writer:
        write_disk(writer, STATES[0])
    is_whole(tmp_path, passphrase)
    assert opened(tmp_path, passphrase).repair().losses == ()
    assert opened(tmp_path, passphrase).lost_roots() == frozenset()


@pytest.mark.parametrize("damage", ["header", "footer", "cut off", "missing", "all of it"])
def test_damaged_packs(tmp_path: Path, damage: str) -> None:
    filled(tmp_path)
    spoilt = packs(tmp_path)[1]
    size = spoilt.stat().st_size
    if damage == "header":
        overwrite(spoilt, 0, b"\xff" * 8)
    elif damage == "footer":
        overwrite(spoilt, size - 200, b"\xff" * 60)
    elif damage == "cut off":
        spoilt.chmod(0o644)
        os.truncate(spoilt, size // 2)
    elif damage == "missing":
        spoilt.unlink()
    else:
        overwrite(spoilt, 0, bytes(size))
    report = Store.open(tmp_path).repair()
    assert (report.losses == ()) == (damage in ("header", "footer"))
    with Store.open(tmp_path).writer() as writer:
        write_disk(writer, STATES[0])
        write_disk(writer, STATES[1])
    is_whole(tmp_path)
    assert Store.open(tmp_path).repair().losses == ()


def test_without_index_and_footer_the_records_headers_tell(tmp_path: Path) -> None:
    filled(tmp_path)
    for segment in (path for path in (tmp_path / "index").rglob("*") if path.is_file()):
        segment.unlink()
    spoilt = packs(tmp_path)[0]
    overwrite(spoilt, spoilt.stat().st_size - 30, b"\xff" * 30)
    report = Store.open(tmp_path).repair()
    assert report.emptied == 1
    assert report.saved >= 6
    is_whole(tmp_path)


def test_a_lost_page_is_lost_with_what_is_below_it(tmp_path: Path) -> None:
    (first, _), store = filled(tmp_path), Store.open(tmp_path)
    size = len(STATES[0])
    for pack in packs(tmp_path, "m"):
        pack.unlink()
    report = store.repair()
    assert {loss.lost for loss in report.losses if loss.point == first} == {size}


def test_a_damaged_point_is_named_and_left(tmp_path: Path) -> None:
    filled(tmp_path)
    point = sorted((tmp_path / "points").iterdir())[0]
    overwrite(point, 5, b"\xff")
    report = Store.open(tmp_path).repair()
    assert [name for name, _ in report.helpless] == [f"points/{point.name}"]
    assert point.exists()


def test_packs_of_a_writer_that_lives_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    store = small_packs(Store.open(tmp_path), 128 << 10)
    with store.writer() as writer:
        writer.seal(memoryview(noise("under way", 30 * CHUNK)))
        assert Store.open(tmp_path).repair().listed == 0
        root = write_disk(writer, noise("under way", 30 * CHUNK))
    assert read_disk(Store.open(tmp_path), root, 30 * CHUNK) == noise("under way", 30 * CHUNK)


def test_an_interrupted_repair_has_lost_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    overwrite(packs(tmp_path)[1], 20_000, bytes(100))
    lost = Store.open(tmp_path).repair(dry=True).losses

    class StopError(Exception):
        pass

    for step in ("saving records", "looking at restore points"):

        def stop(doing: str, done: int, total: int, step: str = step) -> None:
            if doing == step:
                raise StopError

        with pytest.raises(StopError):
            Store.open(tmp_path).repair(progress=stop)
    assert Store.open(tmp_path).repair().losses == lost
    with Store.open(tmp_path).writer() as writer:
        write_disk(writer, STATES[0])
    is_whole(tmp_path)


def test_the_verb_says_what_is_lost(tmp_path: Path) -> None:
    (first, _) = filled(tmp_path)

    def mover(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mover", "repair", str(tmp_path), "--progress", "none", *arguments]
        return fork_server.run(command, capture_output=True, text=True, check=False)

    done = mover()
    assert (done.returncode, done.stderr) == (0, "")
    overwrite(packs(tmp_path)[1], 20_000, bytes(100))
    said = mover("--dry-run", "--json")
    assert said.returncode == 30
    assert json.loads(said.stdout)["dropped"] == 1
    done = mover()
    assert done.returncode == 30
    assert f"{first} of vm, disk 0 (disk): lost 64 KiB" in done.stdout


class Moody(DirectoryBackend):
    """A store that fails to read one data pack, for a while or for ever: all of it, or what has a certain byte."""

    def __init__(self, root: Path, errno: int, key: str, at: int | None = None) -> None:
        super().__init__(str(root))
        self.errno = errno
        self.key = key
        self.at = at

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        if key == self.key and (self.at is None or offset <= self.at < offset + len(view)):
            raise StoreIoError("cannot read it") from OSError(self.errno, os.strerror(self.errno))
        return super().read_into(key, offset, view)


def test_what_cannot_be_read_just_now_is_left_as_it_is(tmp_path: Path) -> None:
    filled(tmp_path)
    key = str(packs(tmp_path)[1].relative_to(tmp_path))
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    for errno in (ETIMEDOUT, EIO):  # of a pack of which nothing at all can be read the medium is not to blame
        report = Store.open(Moody(tmp_path, errno, key)).repair()
        assert [name for name, _ in report.helpless] == [key]
        assert (report.emptied, report.dropped, report.losses) == (0, 0, ())
        assert {path: path.read_bytes() for path in files_of(tmp_path)} == before
    is_whole(tmp_path)


def test_around_a_bad_sector_everything_is_saved(tmp_path: Path) -> None:
    filled(tmp_path)
    spoilt = packs(tmp_path)[1]
    bad = Moody(tmp_path, EIO, str(spoilt.relative_to(tmp_path)), 20_000)
    assert any("cannot be read" in damage.reason for damage in Store.open(bad).verify())
    report = Store.open(bad).repair()
    assert (report.emptied, report.dropped, report.helpless) == (1, 1, ())
    assert report.saved >= 5 and {loss.lost for loss in report.losses} == {CHUNK}
    assert not spoilt.exists()


def test_a_repair_that_was_shut_out_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was suspended after it had copied, for longer than a prune waits: that one has counted on the old place."""
    filled(tmp_path)
    overwrite(packs(tmp_path)[1], 20_000, bytes(100))
    kept = _readable(tmp_path)
    take_off = Repair._take_off

    def suspended(self: Repair, *arguments: Any) -> None:
        Store.open(tmp_path).prune(patience=Patience(silence=-1.0, poll=0.0))
        take_off(self, *arguments)

    monkeypatch.setattr(Repair, "_take_off", suspended)
    with pytest.raises(FencedError):
        Store.open(tmp_path).repair()
    monkeypatch.undo()
    assert _readable(tmp_path) == kept
    Store.open(tmp_path).repair()
    assert _readable(tmp_path) == kept


def _readable(path: Path) -> list[tuple[str, int, bytes]]:
    """Every chunk of every disk that can be read."""
    store = Store.open(path)
    view = memoryview(bytearray(CHUNK))
    found: list[tuple[str, int, bytes]] = []
    for point in store.points():
        for disk in point.record.disks:
            for at in range(0, disk.size, CHUNK):
                with suppress(StoreDamagedError):
                    store.disk(disk.root, disk.size).read_into(at, view)
                    found.append((point.id, at, bytes(view)))
    return found


@pytest.mark.parametrize("how", ["incremental", "deduplicated"])
def test_a_backup_that_runs_meanwhile_is_waited_for_and_looked_at(tmp_path: Path, how: str) -> None:
    """It has begun before anything was known, and counts on what the repair finds lost."""
    filled(tmp_path)
    spoilt = packs(tmp_path)[1]
    overwrite(spoilt, 20_000, bytes(100))
    store = Store.open(tmp_path)
    writer = store.writer()
    committed: list[str] = []
    base = store.points()[0].record.disks[0]

    def meanwhile(seconds: float) -> None:
        """While the repair waits for it."""
        assert spoilt.exists()
        if how == "incremental":
            root = write_disk(writer, noise("new") + STATES[0][CHUNK:], [0], base=base.root, base_size=base.size)
        else:
            root = write_disk(writer, STATES[0])
        committed.append(writer.commit(point_of(root, len(STATES[0]), 9.0)))
        writer.__exit__(None, None, None)

    report = Store.open(tmp_path).repair(patience=Patience(sleep=meanwhile))
    assert not spoilt.exists()
    [point] = [point for point in Store.open(tmp_path).points() if point.id in committed]
    damaged = {one for damage in Store.open(tmp_path).verify(deep=True) for one in damage.points}
    assert point.id in damaged
    assert point.id in {loss.point for loss in report.losses}
    assert point.record.disks[0].root in Store.open(tmp_path).lost_roots()


def test_two_repairs_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    filled(tmp_path)
    overwrite(packs(tmp_path)[1], 20_000, bytes(100))
    overwrite(packs(tmp_path)[2], 20_000, bytes(100))
    lost = Store.open(tmp_path).repair(dry=True).losses
    kept = _readable(tmp_path)
    with ThreadPoolExecutor(2) as executor:
        running = [executor.submit(Store.open(tmp_path).repair) for _ in range(2)]
        for one in running:
            one.result(timeout=60)
    assert _readable(tmp_path) == kept
    assert Store.open(tmp_path).repair().losses == lost
