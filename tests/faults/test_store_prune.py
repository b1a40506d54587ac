"""Pruning, in a directory and in a bucket: what is given back, what stays, and that nothing that happens loses data."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from mover.errors import FencedError, StoreDamagedError, StoreIoError
from mover.store import Patience, PruneReport, Store, copying
from mover.store.backend import Backend
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.names import PointName, SegmentName, new_writer_id
from mover.store.pack_writer import Written
from mover.store.point import FENCE
from mover.store.publish import publish_written
from tests.format_reader import Reader
from tests.power_cut import CutDisk, Op, RecordingOps
from tests.store_backends import Place
from tests.store_fixtures import CHUNK, back_up, noise, point_of, restore, small_packs, text, write_disk


def impatient() -> Patience:
    ticks = count()
    return Patience(silence=5, poll=0, clock=lambda: float(next(ticks)), sleep=lambda _: None)


def forget(store: Store, *points: str) -> list[str]:
    return [point.id for point in store.forget([store.point(point) for point in points])]


def packs(place: Place) -> int:
    return sum(place.objects("packs/").values())


def old_disk() -> bytes:
    return b"".join(noise(number) for number in range(10))


def new_disk() -> bytes:
    return old_disk()[: 2 * CHUNK] + b"".join(noise(number) for number in range(20, 28))


def test_space_is_given_back(place: Place, tmp_path: Path) -> None:
    store = place.create()
    old, new = back_up(store, old_disk(), 1), back_up(store, new_disk(), 2)
    before = packs(place)
    assert store.prune() == PruneReport(2, 20, 4, 0, 0, 0, 0, 0), "everything is needed"
    would = store.would_prune([store.point(old)])
    assert packs(place) == before and len(store.points()) == 2
    assert forget(store, old) == [old]
    did = store.prune()
    assert (did.deleted, did.repacked, did.points, did.records) == (2, 1, 1, 11)
    assert (would.deleted, would.repacked, would.freed) == (did.deleted, did.repacked, did.freed)
    assert before - packs(place) > 7 * CHUNK
    assert did.copied < 3 * CHUNK
    assert {key.split("/")[0] for key in place.objects()} == {"index", "packs", "points", "scrub", "store.json"}
    for opened in (store, place.open()):
        assert restore(opened, new) == new_disk()
        assert list(opened.verify(deep=True)) == []
    assert len(Reader(place.download(tmp_path / "copy")).places) == 11, (
        "ten chunks and a page, says a reader of the format alone"
    )
    with place.open().writer() as writer:
        assert writer.seal(memoryview(old_disk())).new == 8 * CHUNK
        assert writer.seal(memoryview(new_disk())).new == 0


def test_what_is_mostly_needed_stays_where_it_is(place: Place) -> None:
    store = place.create()
    with store.writer() as writer:
        writer.seal(memoryview(noise("unneeded", 2 * CHUNK)))
        writer.commit(point_of(write_disk(writer, old_disk()), len(old_disk())))
    assert store.prune().deleted == 0
    did = store.prune(min_live=0.95)
    assert (did.deleted, did.repacked) == (1, 1)
    assert did.freed - did.copied > 2 * CHUNK
    assert restore(place.open(), "latest") == old_disk()


def test_tiny_records_are_not_copied_for_ever(place: Place) -> None:
    store = place.create()
    disk = b"".join(text(number) for number in range(300))
    back_up(store, disk)
    assert store.prune(min_live=1.0).deleted == 0
    assert restore(store, "latest") == disk


def test_what_is_copied_is_listed_some_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be listed is held in memory, so it must not be everything."""
    monkeypatch.setattr(copying, "PUBLISH_RECORDS", 2)
    listed: list[int] = []
    left = [2]

    def list_some(backend: Backend, identity: Identity, name: SegmentName, packs: Sequence[Written]) -> list[bytes]:
        if not left[0]:
            raise StoreIoError("the network is gone")
        left[0] -= 1
        listed.append(len(packs))
        return publish_written(backend, identity, name, packs)

    place.create()
    store = small_packs(place.open(), 2 * CHUNK)
    disks = [b"".join(noise(number) for number in range(first, first + 24)) for first in (0, 100)]
    mixed = b"".join(
        part for at in range(24) for part in (disks[0][at * CHUNK :][:CHUNK], disks[1][at * CHUNK :][:CHUNK])
    )
    back_up(store, mixed, 1)
    back_up(store, disks[0], 2)
    forget(store, store.points()[0].id)
    before = packs(place)
    with monkeypatch.context() as patch:
        patch.setattr(copying, "publish_written", list_some)
        with pytest.raises(StoreIoError):
            store.prune()
        assert sum(listed) >= 2, "before it ended, some had been listed"
        assert restore(place.open(), "latest") == disks[0]
        left[0] = 1000
        did = small_packs(place.open(), 2 * CHUNK).prune()
    assert len(listed) > 4 and max(listed) <= 4
    assert did.freed > did.copied
    assert packs(place) < 0.6 * before, "what the one that failed had copied is not there twice"
    assert restore(place.open(), "latest") == disks[0]
    assert list(place.open().verify(deep=True)) == []


def test_what_is_never_forgotten(place: Place) -> None:
    store = place.create()
    points = [back_up(store, text(number), number, vm) for number, vm in enumerate(["one", "two", "one"])]
    assert forget(store, *points) == [points[0]], "one of each VM stays"
    with store.writer() as writer:
        first, second = (
            writer.commit(point_of(write_disk(writer, text(number)), CHUNK, number, "one")) for number in (5, 6)
        )
        assert forget(place.open(), first) == [], "a run that is writing"
    assert forget(store, first) == [first]
    assert {point.id for point in place.open().points()} == {points[1], points[2], second}


def test_a_silent_writer_is_shut_out(place: Place) -> None:
    back_up(place.create(), text("other"), 0)
    with pytest.raises(FencedError), place.open().writer() as writer:
        kept = writer.commit(point_of(write_disk(writer, text(1)), CHUNK, 1))
        root = write_disk(writer, noise(2))
        writer.flush()
        with place.open().writer() as garbage:
            garbage.seal(memoryview(noise("garbage")))
        did = place.open().prune(patience=impatient())
        assert (did.fenced, did.deleted) == (1, 3), "what it had not committed is nobody's, too"
        assert place.read(PointName(writer.wid, 1).key) == FENCE
        with pytest.raises(FencedError):
            writer.renew()
        writer.commit(point_of(root, CHUNK, 2))
    assert not place.objects("lease/")
    assert restore(place.open(), kept) == text(1)
    assert list(place.open().verify(deep=True)) == []


def test_who_is_shut_out_is_told_so_when_its_base_is_gone(place: Place) -> None:
    """What a writer built upon was forgotten and pruned once it was shut out: that is no damage."""
    store = place.create()
    old = back_up(store, old_disk(), 1)
    back_up(store, noise("other", CHUNK), 2)
    with pytest.raises(FencedError), place.open().writer() as writer:
        disk = place.open().point(old).record.disks[0]
        tree = writer.tree(disk.size, base=disk.root, base_size=disk.size)
        tree.put(0, writer.seal(memoryview(noise("new"))).ids)
        forget(place.open(), old)
        assert place.open().prune(patience=impatient()).fenced == 1
        tree.finish()
    assert list(place.open().verify(deep=True)) == []


def test_a_killed_first_full_is_given_back_by_the_next_prune(place: Place) -> None:
    """Nothing is forgotten, and nothing else is to be deleted; its lease is all that stands in the way."""
    place.create()
    writer = small_packs(place.open(), CHUNK).writer()
    write_disk(writer, old_disk())
    writer._packs.stop()
    assert packs(place) > 5 * CHUNK
    did = place.open().prune(patience=impatient())
    assert (did.fenced, packs(place)) == (1, 0)
    assert did.freed > 5 * CHUNK
    assert not place.objects("lease/")


def test_a_prune_that_has_nothing_to_do_does_not_wait_for_a_backup_that_lives(place: Place) -> None:
    point = back_up(place.create(), old_disk())
    ticks, sleeps = count(), count()
    with place.open().writer() as writer:
        root = write_disk(writer, new_disk())
        writer.flush()

        def sleep(_: float) -> None:
            if next(sleeps) == 2:
                writer.renew()

        patience = Patience(silence=30, poll=0, clock=lambda: float(next(ticks)), sleep=sleep)
        did = place.open().prune(patience=patience)
        assert (did.fenced, did.deleted, next(sleeps)) == (0, 0, 3)
        writer.commit(point_of(root, len(new_disk()), 2))
    assert restore(place.open(), point) == old_disk()
    assert restore(place.open(), "latest") == new_disk()


def test_signs_of_life_are_waited_for(place: Place) -> None:
    store = place.create()
    with place.open().writer() as garbage:
        garbage.seal(memoryview(noise("garbage")))
    writer = place.open().writer()
    root = write_disk(writer, noise("garbage"))
    ticks, sleeps = count(), count()

    def sleep(_: float) -> None:
        if next(sleeps) < 30:
            writer.renew()
        else:
            with writer:
                writer.commit(point_of(root, CHUNK))

    did = store.prune(patience=Patience(silence=8, poll=0, clock=lambda: float(next(ticks)), sleep=sleep))
    assert (did.fenced, next(sleeps)) == (0, 31)
    assert (did.deleted, did.repacked) == (1, 0), "what it counted on was copied"
    assert did.copied > CHUNK
    assert restore(place.open(), "latest") == noise("garbage")


def test_lists_that_lag_are_waited_for(place: Place) -> None:
    store = place.create()
    old = back_up(store, old_disk(), 1)
    back_up(store, new_disk(), 2)
    forget(store, old)
    time = [0.0]
    seen: list[tuple[float, bool]] = []

    def sleep(seconds: float) -> None:
        time[0] += seconds
        seen.append((time[0], bool(place.objects("cond/"))))

    patience = Patience(poll=1, clock=lambda: time[0], sleep=sleep, settle=10)
    assert place.open().prune(patience=patience).deleted == 2
    assert len(seen) == 20 and all(condemned for _, condemned in seen), "twice, after packs were condemned"
    assert not place.objects("cond/")


class _Stop(Exception):
    pass


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_an_interrupted_prune_is_finished_by_the_next(place: Place, at: int) -> None:
    store = small_packs(place.create(), CHUNK)
    old, new = back_up(store, old_disk(), 1), back_up(store, new_disk(), 2)
    forget(store, old)
    steps = count()

    def stop(*_: object) -> None:
        if next(steps) == at:
            raise _Stop

    try:
        store.prune(progress=stop)
    except _Stop:
        assert restore(place.open(), new) == new_disk()
    place.open().prune()
    assert packs(place) < 11.2 * CHUNK
    assert not place.objects("cond/")
    assert restore(place.open(), new) == new_disk()
    assert list(place.open().verify(deep=True)) == []


def test_damage_stops_a_prune(place: Place) -> None:
    store = place.create()
    old, new = back_up(store, old_disk(), 1), back_up(store, new_disk(), 2)
    forget(store, old)
    before = packs(place)
    for folder in ("points/", "index/"):
        for at in (70, -10):
            key = next(iter(place.objects(folder)))
            intact = place.read(key)
            data = bytearray(intact)
            data[at] ^= 1
            place.tamper(key, bytes(data))
            with pytest.raises(StoreDamagedError):
                place.open().prune()
            place.tamper(key, intact)
    lost = next(iter(place.objects("packs/")))
    data = bytearray(place.read(lost))
    place.tamper(lost, None)
    with pytest.raises(StoreDamagedError, match=new):
        place.open().prune()
    place.tamper(lost, bytes(data))
    assert packs(place) == before
    place.open().prune()
    assert restore(place.open(), new) == new_disk()


def test_a_damaged_record_is_not_copied(place: Place) -> None:
    """The pack it is in stays, so that nothing is lost that could be recovered."""
    store = place.create()
    old, new = back_up(store, old_disk(), 1), back_up(store, new_disk(), 2)
    forget(store, old)
    (pack,) = (key for key in place.objects("packs/") if noise(1)[:100] in place.read(key))
    data = bytearray(place.read(pack))
    data[data.index(noise(1)[:100])] ^= 1
    place.tamper(pack, bytes(data))
    did = place.open().prune()
    assert [one.split(":")[0] for one in did.damaged] == [pack]
    assert pack in place.objects()
    with pytest.raises(StoreDamagedError):
        restore(place.open(), new)
    data[data.index(noise(1)[1:100]) - 1] ^= 1
    place.tamper(pack, bytes(data))
    place.open().prune()
    assert pack not in place.objects()
    assert restore(place.open(), new) == new_disk()


def record_a_prune(path: Path) -> tuple[list[Op], dict[str, bytes], str]:
    ops = RecordingOps()
    backend = DirectoryBackend(str(path), ops)
    backend.make_root()
    store = small_packs(Store.create(backend), CHUNK)
    points = {back_up(store, disk, number): disk for number, disk in enumerate((old_disk(), new_disk()))}
    old, _ = points
    ops.note("begin")
    forget(store, old)
    ops.note("forgotten")
    store.prune()
    return ops.log, points, old


def test_power_cuts_while_pruning(tmp_path: Path) -> None:
    """Whatever comes back of what was deleted: every point that is there restores, and the next prune tidies up."""
    log, points, old = record_a_prune(tmp_path / "store")
    rng = random.Random(1)
    disk = CutDisk()
    notes: list[str] = []
    looked = 0
    for op in log:
        disk.apply(op)
        if op.call == "note":
            notes.append(op.path)
        if not notes or rng.random() < 0.5:
            continue
        left = tmp_path / "left"
        left.mkdir()
        disk.cut(rng, rng.choice([0.0, 0.3, 0.7]), str(tmp_path), left)
        store = Store.open(left / "store")
        listed = {point.id for point in store.points()}
        assert set(points) - {old} <= listed <= set(points) - ({old} if "forgotten" in notes else set())
        for _ in range(2):
            assert all(restore(store, point) == points[point] for point in listed)
            store.prune(patience=impatient())
        assert list(Store.open(left / "store").verify(deep=True)) == []
        looked += 1
        shutil.rmtree(left)
    assert looked > 20


def test_what_a_killed_probe_has_left_goes(place: Place) -> None:
    store = place.create()
    old, young = f"probe/{bytes(16).hex()}/once", f"probe/{new_writer_id().hex()}"
    for key in (old, young):
        assert place.backend().put(key, b"first")
    store.prune()
    assert list(place.objects("probe/")) == [young]


def test_readers_that_opened_the_store_before(place: Place) -> None:
    store = place.create()
    old, new = back_up(store, old_disk(), 1), back_up(store, new_disk(), 2)
    reader = place.open()
    disk = reader.point(new).record.disks[0]
    content = reader.disk(disk.root, disk.size)
    assert len(list(content.extents())) == 1
    forget(store, old)
    assert store.prune().repacked == 1
    out = bytearray(disk.size)
    content.read_into(0, memoryview(out))
    assert out == new_disk()


def test_condemnations_that_cannot_be_read(place: Place) -> None:
    point = back_up(place.create(), old_disk())
    place.backend().put("cond/" + "0" * 32, b"MVCOND\0\x01 and more")
    for refused in (lambda: place.open().writer(), lambda: place.open().prune()):
        with pytest.raises(StoreDamagedError):
            refused()
    assert restore(place.open(), point) == old_disk()


def test_what_a_prune_deletes_is_not_missing_to_a_check(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    points = [back_up(store, noise(3) + noise(number), number) for number in range(50, 80)]
    forget(store, *points[:-1])
    pruned: list[PruneReport] = []

    def prune_meanwhile(done: int, total: int) -> None:
        if not pruned:
            pruned.append(Store.open(tmp_path / "store").prune(patience=impatient()))

    assert list(store.verify(progress=prune_meanwhile)) == []
    assert pruned[0].deleted > 16
    assert restore(store, points[-1]) == noise(3) + noise(79)


def test_more_packs_than_can_be_condemned_at_once_take_several_prunes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mover.store.prune.MAX_PACKS", 2)
    store = place.create()
    for number in range(4):
        back_up(store, noise(number), number)
    store.forget(store.points()[:3])
    assert [place.open().prune().deleted for _ in range(4)] == [2, 2, 2, 0]
    assert restore(place.open(), "latest") == noise(3)
    assert list(place.open().verify(deep=True)) == []


def test_of_what_is_damaged_a_second_copy_is_not_deleted(tmp_path: Path) -> None:
    """Two runs at once have stored the same chunk. The copy that look-ups prefer is rotten, which a prune finds out."""
    store = Store.create(tmp_path)
    with store.writer() as one, Store.open(tmp_path).writer() as other:
        for writer, waste in ((one, "one"), (other, "other")):
            writer.seal(memoryview(noise(waste, 5 * CHUNK)))
            writer.commit(point_of(write_disk(writer, noise("both")), CHUNK, 1.0 if writer is one else 2.0))
    store = Store.open(tmp_path)
    [place_] = store._index.view.locate([store._identity.chunk_id(noise("both"))])
    assert place_ is not None
    path = tmp_path / place_.pack.key
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[data.index(noise("both")[:64])] ^= 1
    path.write_bytes(data)
    report = Store.open(tmp_path).prune()
    assert [name.partition(":")[0] for name in report.damaged] == [place_.pack.key]
    assert Store.open(tmp_path).repair().losses == ()
    for point in Store.open(tmp_path).points():
        assert restore(Store.open(tmp_path), point.id) == noise("both")


def test_a_pack_that_goes_while_it_is_verified_is_no_damage(tmp_path: Path) -> None:
    store = small_packs(Store.create(tmp_path))
    first = back_up(store, noise(1, 8 * CHUNK), 1.0)
    back_up(store, noise(2, 8 * CHUNK), 2.0)
    old = min((tmp_path / "packs").rglob("*.d"))
    forget(store, first)

    class Pruned(DirectoryBackend):
        """Another process prunes between the footer of a pack and its records."""

        done = False

        def read_into(self, key: str, offset: int, view: memoryview) -> int:
            if not self.done and key == str(old.relative_to(tmp_path)):
                self.done = True
                Store.open(tmp_path).prune()
            return super().read_into(key, offset, view)

    backend = Pruned(str(tmp_path))
    assert list(Store.open(backend).verify()) == []
    assert backend.done
