"""Marks on the rows of a segment: what was marked is told, slice by slice and pack by pack, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mover.store import file_map, marks, segment
from mover.store.identity import Identity
from mover.store.index import Loaded
from mover.store.marks import Marks
from mover.store.names import DATA, PackName, SegmentName
from mover.store.segment import ROW, PackEntry, keys_of

IDENTITY = Identity.of(bytes(32), encrypted=False)
PACKS = [PackEntry(PackName(b"a" * 16, number, DATA), 1) for number in range(5)]
# So many that the segment is mapped: smaller files are read.
COUNT = 6000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A segment that is mapped. Its last pack has no records."""
    rng = np.random.default_rng(1)
    keys = keys_of(rng.bytes(32 * COUNT))
    rows = np.zeros(COUNT, ROW)
    rows["rest"] = keys[:, 1:]
    rows["pack"] = rng.integers(0, len(PACKS) - 1, COUNT)
    rows["offset"] = np.arange(COUNT)
    rows["length"] = rng.integers(1, 1 << 22, COUNT)
    path: Path = tmp_path_factory.mktemp("marks") / "segment"
    path.write_bytes(b"".join(segment.encode(IDENTITY, keys, rows, PACKS)))
    data = file_map.map_file(path)
    return Loaded(SegmentName(0, b"a" * 16, 0), segment.parse(IDENTITY, data), data, None)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "_SLICE", 1024)
    monkeypatch.setattr(marks, "_TOGETHER", 100)


ROWS = st.lists(st.lists(st.integers(0, COUNT - 1), max_size=400), max_size=4)


@given(ROWS, st.lists(st.booleans(), min_size=len(PACKS), max_size=len(PACKS)))
def test_what_was_marked_is_told(loaded: Loaded, batches: list[list[int]], chosen: list[bool]) -> None:
    found = loaded.segment
    made = Marks(loaded)
    marked: set[int] = set()
    for batch in batches:
        fresh = made.add(np.array(batch, np.int64)).tolist()
        firsts = [at for at, row in enumerate(batch) if row not in marked and row not in batch[:at]]
        assert fresh == firsts
        marked.update(batch)
    by_pack: dict[int, set[int]] = {}
    for row in marked:
        by_pack.setdefault(int(found.rows["pack"][row]), set()).add(row)
    counts, lengths = made.totals()
    for number in range(len(PACKS)):
        assert counts[number] == len(by_pack.get(number, ()))
        assert lengths[number] == sum(int(found.rows["length"][row]) for row in by_pack.get(number, ()))
    for among in (None, np.array(chosen)):
        told = list(made.by_pack(among))
        wanted = [number for number in sorted(by_pack) if among is None or chosen[number]]
        assert [name for name, _ in told] == [PACKS[number].name for number in wanted]
        for number, (_, entries) in zip(wanted, told, strict=True):
            expected = {found.ids(np.array([row])).tobytes(): found.rows[row] for row in by_pack[number]}
            assert {entry.id: entry.offset for entry in entries} == {
                id: int(row["offset"]) for id, row in expected.items()
            }
            assert all(entry.length == int(expected[entry.id]["length"]) for entry in entries)
            assert len(entries) == len(expected)


def test_all_and_none(loaded: Loaded) -> None:
    made = Marks(loaded)
    assert list(made.by_pack()) == [] and made.totals()[0].sum() == 0
    assert len(made.add(np.arange(COUNT))) == COUNT
    assert len(made.add(np.arange(COUNT))) == 0
    assert sum(len(entries) for _, entries in made.by_pack()) == COUNT
    empty = segment.parse(IDENTITY, memoryview(b"".join(segment.encode(IDENTITY, keys_of(b""), np.zeros(0, ROW), []))))
    nothing = Marks(Loaded(SegmentName(0, b"a" * 16, 1), empty, memoryview(b""), None))
    assert list(nothing.by_pack()) == [] and len(nothing.add(np.zeros(0, np.int64))) == 0
