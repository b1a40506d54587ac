"""Index segments are merged, whatever happens meanwhile; lookups do not notice."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mover.errors import StoreDamagedError
from mover.store import Store, merge, segment
from mover.store.directory import DirectoryBackend
from mover.store.identity import Identity
from mover.store.index import Index
from mover.store.merge import MOST
from mover.store.names import DATA, PackName, SegmentName
from mover.store.segment import ROW, PackEntry, keys_of
from tests.format_reader import Reader
from tests.store_fixtures import CHUNK, back_up, files_of, noise, restore, text

IDENTITY = Identity.of(bytes(32), encrypted=False)


def test_many_runs_leave_few_segments(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = Store.create(path)
    points = {back_up(store, text(number) + noise("shared"), number): text(number) for number in range(30)}
    left = [str(file.relative_to(path / "index")) for file in files_of(path / "index")]
    assert len(left) <= MOST + 4
    assert {name[0] for name in left} == {"0", "1"}
    for one in (store, Store.open(path)):
        assert all(restore(one, point) == disk + noise("shared") for point, disk in points.items())
    assert list(Store.open(path).verify(deep=True)) == []
    with Store.open(path).writer() as writer:
        assert writer.seal(memoryview(b"".join(points.values()) + noise("shared"))).new == 0
    assert len(Reader(path).places) == 1 + 2 * 30, "a chunk and a page for each point, and the shared chunk"


def test_writers_that_merge_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path)
    with ThreadPoolExecutor(4) as threads:
        points = list(threads.map(lambda number: back_up(Store.open(path), text(number)), range(60)))
    store = Store.open(path)
    assert [restore(store, point) for point in points] == [text(number) for number in range(60)]
    assert list(store.verify(deep=True)) == []


def publish(backend: DirectoryBackend, name: SegmentName, ids: list[bytes], pack: PackEntry, first: int = 0) -> None:
    rows = np.zeros(len(ids), ROW)
    keys = keys_of(b"".join(ids))
    rows["rest"] = keys[:, 1:]
    rows["offset"] = np.arange(first, first + len(ids))
    assert backend.put(name.key, b"".join(segment.encode(IDENTITY, keys, rows, [pack])))


@pytest.mark.parametrize("count", [1, 50000])
def test_merged_in_slices(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lookups, from one segment as from many; of two places of an id the one that can be read is kept."""
    monkeypatch.setattr(merge, "_SLICE", 3000)
    backend = DirectoryBackend(str(tmp_path / "store"))
    backend.make_root()
    rng = random.Random(1)
    ids = [rng.randbytes(32) for _ in range(count)] + [b"\0" * 8 + rng.randbytes(24) for _ in range(50)]
    packs = [PackEntry(PackName(bytes([number] * 16), number, DATA), 10 + number) for number in range(4)]
    for pack in packs[1:]:
        backend.put(pack.name.key, bytes(pack.size))
    for number, pack in enumerate(packs):
        publish(backend, SegmentName(0, b"a" * 16, number), ids[number::5] + ids[4::5], pack, number * count)
    index = Index(backend, IDENTITY, backend)
    before = index.view
    places = before.locate(ids)
    assert None in places, "the pack of the first segment is missing"
    name = merge.merge(backend, IDENTITY, before.segments, b"b" * 16, 0)
    assert name is not None
    index.add(name)
    data = backend.map(name.key)
    assert segment.columns_intact(IDENTITY, data)
    assert len(index.view.segments) == len(index.reload().segments) == 1
    again = index.view.locate(ids)
    assert [place is None for place in again] == [place is None for place in places]
    assert all(new == old for number, (new, old) in enumerate(zip(again, places, strict=True)) if number % 5 != 4)
    assert index.view.records == len(ids) + 3 * len(ids[4::5]), "every place of every id"
    (merged,) = index.view.segments
    prefix, fence = merged.segment.prefix, merged.segment.fence
    assert (prefix[1:] >= prefix[:-1]).all()
    edges = [number * (1 << 64) // (len(fence) - 1) for number in range(len(fence) - 1)]
    assert fence[:-1].tolist() == np.searchsorted(prefix, np.array(edges, np.uint64)).tolist()
    assert (fence[-1], merged.segment.window) == (index.view.records, np.diff(fence).max())


def test_damage_is_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    points = [back_up(Store.create(path), text("first"))]
    (file,) = files_of(path / "index")
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[70] ^= 1
    file.write_bytes(data)
    for number in range(20):
        points.append(back_up(Store.open(path), text(number) + noise(1, CHUNK), number))
    assert file.exists()
    assert str(file.relative_to(path)) in [damage.object for damage in Store.open(path).verify()]
    assert restore(Store.open(path), points[-1]) == text(19) + noise(1)


def test_more_records_than_a_segment_can_have_stay_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path)
    monkeypatch.setattr(segment, "MAX_RECORDS", 2 * MOST)
    points = {back_up(store, text(number), number): text(number) for number in range(3 * MOST)}
    assert len(files_of(tmp_path / "index")) > MOST
    store.forget(store.points()[:-1])
    with pytest.raises(StoreDamagedError, match="nothing is deleted"):
        store.prune()
    last = list(points)[-1]
    assert restore(Store.open(tmp_path), last) == points[last]
    assert list(Store.open(tmp_path).verify(deep=True)) == []
