"""Damage mended: the index from the packs, good records from bad packs; the next backup does the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mover.errors import StoreDamagedError
from mover.store import Store
from protocol.secret import Secret
from tests import fork_server
from tests.crypt_fixtures import CHEAP
from tests.store_fixtures import CHUNK, back_up, files_of, noise, read_disk, small_packs, text, write_disk

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
