"""Writers: deduplication, many threads, several runs at once, what is counted."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mover.errors import FencedError, NotFoundError, StoreDamagedError, UsageError
from mover.store import PointRecord, Store
from mover.store.directory import DirectoryBackend
from mover.store.names import PointName
from mover.store.point import FENCE
from tests.format_reader import Reader
from tests.store_fixtures import CHUNK, back_up, noise, point_of, read_disk, restore, small_packs, text, write_disk


def test_what_becomes_of_chunks(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    slot = noise(1) + bytes(CHUNK) + noise(1) + text(2) + noise(3, 100)
    with store.writer() as writer:
        sealed = writer.seal(memoryview(slot))
        assert (sealed.zero, sealed.known, sealed.new) == (CHUNK, CHUNK, 2 * CHUNK + 100)
        assert CHUNK + 100 < sealed.stored < CHUNK + 2000
        assert len(sealed.ids) == 5 * 32
        assert sealed.ids[:32] == sealed.ids[64:96] != sealed.ids[32:64] == bytes(32)
        again = writer.seal(memoryview(slot))
        assert again == (sealed.ids, CHUNK, len(slot) - CHUNK, 0, 0)
        writer.flush()
        assert writer.seal(memoryview(slot)) == again
    with Store.open(tmp_path / "store").writer() as writer:
        assert writer.seal(memoryview(slot)) == again
        assert writer.seal(memoryview(b"")) == (b"", 0, 0, 0, 0)


def test_threads_write_each_chunk_once(tmp_path: Path) -> None:
    store = small_packs(Store.create(tmp_path / "store"), 4 * CHUNK)
    rng = random.Random(1)
    pool_of_chunks = [noise(number) if number % 2 else text(number) for number in range(60)]
    slots = [b"".join(rng.choices(pool_of_chunks, k=8)) for _ in range(150)]
    stop = threading.Event()
    with store.writer() as writer, ThreadPoolExecutor(5) as threads:

        def publish() -> None:
            while not stop.is_set():
                writer.flush()

        publishing = threads.submit(publish)
        sealed = list(threads.map(lambda slot: writer.seal(memoryview(slot)), slots))
        stop.set()
        publishing.result()
        tree = writer.tree(len(slots) * 8 * CHUNK)
        for number, one in enumerate(sealed):
            tree.put(number * 8, one.ids)
        root = tree.finish()
        writer.commit(point_of(root, len(slots) * 8 * CHUNK))
    assert sum(one.new for one in sealed) == 60 * CHUNK
    assert sum(one.known for one in sealed) == (150 * 8 - 60) * CHUNK
    assert read_disk(store, root, len(slots) * 8 * CHUNK) == b"".join(slots)
    reader = Reader(tmp_path / "store")
    data_packs = (tmp_path / "store/packs").glob("*/*/*.d")
    assert sum(map(reader.check_pack, data_packs)) == 60, "a chunk was stored twice"


def test_runs_do_not_wait_for_each_other(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    disks = [noise("shared", 4 * CHUNK) + noise(number, CHUNK) for number in range(6)]
    with ThreadPoolExecutor(3) as threads:
        points = list(threads.map(lambda disk: back_up(Store.open(tmp_path / "store"), disk), disks))
    assert [restore(store, point) for point in points] == disks
    assert list(store.verify(deep=True)) == []


def test_several_commits_of_one_writer(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with store.writer() as writer, ThreadPoolExecutor(3) as threads:

        def one(number: int) -> tuple[str, bytes]:
            disk = noise(number, 3 * CHUNK)
            record = point_of(write_disk(writer, disk), len(disk), number, f"vm{number}", writer.put_blob(disk[:99]))
            return writer.commit(record), disk

        points = list(threads.map(one, range(6)))
    store = Store.open(tmp_path / "store")
    assert [restore(store, point) for point, _ in points] == [disk for _, disk in points]
    assert [point.id for point in store.points()] == [point for point, _ in points]
    for found, (_, disk) in zip(store.points(), points, strict=True):
        assert store.get_blob(found.record.metadata) == disk[:99]


def test_a_reader_sees_what_others_commit_later(tmp_path: Path) -> None:
    reading = Store.create(tmp_path / "store")
    assert reading.points() == []
    first = back_up(Store.open(tmp_path / "store"), noise(1))
    assert restore(reading, first) == noise(1)
    second = back_up(Store.open(tmp_path / "store"), noise(2))
    assert restore(reading, second) == noise(2)


def test_finding_points(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    points = [back_up(store, noise(number), number, f"vm{number % 2}") for number in range(4)]
    assert store.point("latest").id == store.point("vm1").id == store.point("vm1-uuid").id == points[3]
    assert store.point("vm0").id == points[2]
    assert all(store.point(point[:12]).id == point for point in points)
    for wanted in (points[0][:3], "zzzz", "vm"):
        with pytest.raises(NotFoundError):
            store.point(wanted)


def test_a_fenced_writer_cannot_commit(tmp_path: Path) -> None:
    """The number of a writer's next commit is known, so a prune can take it before the writer does."""
    path = tmp_path / "store"
    store = Store.create(path)
    with store.writer() as writer:
        root = write_disk(writer, noise(1))
        kept = writer.commit(point_of(root, CHUNK))
        (path / PointName(writer.wid, 1).key).write_bytes(FENCE)
        with pytest.raises(FencedError):
            writer.commit(point_of(root, CHUNK, 1))
    assert [point.id for point in Store.open(path).points()] == [kept]
    assert list(Store.open(path).verify()) == []


def test_limits(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with store.writer() as writer:
        blob = writer.put_blob(bytes(4 << 20))
        with pytest.raises(ValueError, match="at most"):
            writer.put_blob(bytes((4 << 20) + 1))
        large = PointRecord(vm_uuid="u", vm_name="n" * (1 << 20), created=0, disks=[])
        with pytest.raises(ValueError, match="at most"):
            writer.commit(large)
    assert store.get_blob(blob) == bytes(4 << 20)
    for settings in ({"chunk_size": 32768}, {"chunk_size": 100000}, {"chunk_size": 8 << 20}, {"compression": "lzma"}):
        with pytest.raises(UsageError):
            Store.create(tmp_path / "other", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="already"):
        Store.create(tmp_path / "store")


@pytest.mark.parametrize("chunk_size", [128 << 10, 4 << 20])
def test_other_chunk_sizes(tmp_path: Path, chunk_size: int) -> None:
    store = Store.create(tmp_path / "store", chunk_size=chunk_size, compression="zstd:3")
    disk = noise(1, 100) + bytes(5 << 20) + text(2, 3 << 20)
    with store.writer() as writer:
        tree = writer.tree(len(disk))
        sealed = writer.seal(memoryview(disk))
        tree.put(0, sealed.ids)
        root = tree.finish()
    assert read_disk(store, root, len(disk)) == disk


def test_resizing_changes_the_length_of_the_last_chunk(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    disk = noise(1, 2 * CHUNK + 1000)
    with store.writer() as writer:
        base = write_disk(writer, disk)
        for size in (len(disk) + 500, 5 * CHUNK + 7, 2 * CHUNK + 10, CHUNK, 10, 0):
            root = write_disk(writer, bytes(size), [], base=base, base_size=len(disk))
            writer.flush()
            assert read_disk(store, root, size) == disk[:size].ljust(size, b"\0")
            full = write_disk(writer, disk[:size].ljust(size, b"\0"))
            assert full == root
    assert list(store.verify(deep=True)) == []


def test_reading_any_range(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    rng = random.Random(1)
    disk = b"".join(rng.choice([noise(number), text(number), bytes(CHUNK)]) for number in range(40)) + b"end"
    with store.writer() as writer:
        root = write_disk(writer, disk, slot=3)
    reader = store.disk(root, len(disk))

    def one(seed: int) -> bool:
        rng = random.Random(seed)
        offset = rng.randrange(len(disk))
        length = rng.randrange(min(len(disk) - offset, 10 * CHUNK) + 1)
        out = bytearray(b"\xaa" * length)
        reader.read_into(offset, memoryview(out))
        return bytes(out) == disk[offset : offset + length]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(one, range(200)))
    stored = b"".join(disk[extent.offset : extent.end] for extent in reader.extents())
    assert stored.strip(b"\0")
    assert len(stored) == sum(
        len(piece) for number in range(41) if (piece := disk[number * CHUNK :][:CHUNK]).strip(b"\0")
    )


def test_a_writer_that_renews_its_lease_learns_that_it_is_shut_out(tmp_path: Path) -> None:
    """Also if it has renewed it before."""
    store = Store.create(tmp_path)
    writer = store.writer()
    writer.renew()
    writer.renew()
    for lease in (tmp_path / "lease").iterdir():
        lease.unlink()
    with pytest.raises(FencedError):
        writer.renew()
    writer.abort()


class Garbling(DirectoryBackend):
    """Gives back other bytes than were put, of segments, once this is asked for."""

    garbles = False

    def map(self, key: str) -> memoryview:
        whole = super().map(key)
        return memoryview(bytes(len(whole))) if self.garbles else whole


def test_a_segment_that_comes_back_damaged_is_said_to_be(tmp_path: Path) -> None:
    Store.create(tmp_path)
    backend = Garbling(str(tmp_path))
    with pytest.raises(StoreDamagedError, match="index/0/"), Store.open(backend).writer() as writer:
        write_disk(writer, noise(1))
        backend.garbles = True
        writer.flush()
