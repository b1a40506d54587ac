"""Index segments and packs: what was put in is found, what was not is not, and no bytes make their parsers fail."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from mover.errors import StoreIoError
from mover.store import Store, file_map, index, pack, point, record, segment
from mover.store.condemned import encode_condemned
from mover.store.file_map import map_file
from mover.store.identity import Identity
from mover.store.index import IndexView, Loaded
from mover.store.merge import merge
from mover.store.names import (
    DATA,
    META,
    PackName,
    PointName,
    SegmentName,
    condemned_key,
    new_writer_id,
    parse_lease,
    parse_pack,
    parse_partial,
    parse_point,
    parse_segment,
)
from mover.store.segment import ROW, PackEntry, Segment, keys_of
from tests.store_fixtures import CHUNK, back_up, noise, restore

IDENTITY = Identity.of(bytes(range(32)), encrypted=False)
CIPHER = IDENTITY.cipher
PACKS = [PackEntry(PackName(bytes([number] * 16), number, DATA), 1000 + number) for number in range(3)]


def make(ids: list[bytes], **about: object) -> bytes:
    rows = np.zeros(len(ids), ROW)
    keys = keys_of(b"".join(ids))
    rows["rest"] = keys[:, 1:]
    rows["offset"] = np.arange(len(ids))
    rows["pack"] = np.arange(len(ids)) % len(PACKS)
    return b"".join(segment.encode(IDENTITY, keys, rows, PACKS, **about))  # type: ignore[arg-type]


def parse(data: bytes) -> Segment:
    return segment.parse(IDENTITY, memoryview(data))


# Ids of which many share their first bytes, as no hash would have it.
IDS = st.builds(
    lambda prefix, middle, rest: prefix.to_bytes(8, "big") + middle.to_bytes(8, "little") + rest,
    st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1), st.just(2**64 - 1)),
    st.integers(0, 2),
    st.binary(min_size=16, max_size=16),
)


# Small segments are bisected, in larger ones the window is looked into that an id must be in.
BISECTED = pytest.mark.parametrize("bisected", [True, False])


@BISECTED
@given(st.lists(IDS, unique=True, max_size=300), st.lists(IDS, max_size=50))
def test_segments_find_what_they_hold(bisected: bool, ids: list[bytes], others: list[bytes]) -> None:
    data = make(ids)
    found = parse(data)
    assert segment.columns_intact(IDENTITY, memoryview(data))
    asked = ids + others
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "_BISECTED", len(ids) if bisected else -1)
        at, rows, packs = found.find(keys_of(b"".join(asked)))
    assert at.tolist() == [number for number, id in enumerate(asked) if id in ids]
    for number, row, in_pack in zip(at.tolist(), rows.tolist(), packs.tolist(), strict=True):
        id = asked[number]
        assert found.ids(np.array([row])).tobytes() == id
        assert found.rows["offset"][row] == ids.index(id)
        assert found.rows["pack"][row] == in_pack
    assert found.packs == PACKS


@BISECTED
@pytest.mark.parametrize("bunched", [0, 300])
def test_large_segments(bunched: int, bisected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `bunched` ids in one window, wider than the gather is made for."""
    monkeypatch.setattr(segment, "_BISECTED", 1 << 20 if bisected else -1)
    rng = random.Random(1)
    ids = [rng.randbytes(32) for _ in range(20000)] + [b"\7" * 8 + rng.randbytes(24) for _ in range(bunched)]
    found = parse(make(ids, replaces=[SegmentName(0, b"w" * 16, 7)], level=1))
    assert (found.window > 64) == bool(bunched)
    _, rows, _ = found.find(keys_of(b"".join(ids)))
    assert found.rows["offset"][rows].tolist() == list(range(len(ids)))
    assert not len(found.find(keys_of(rng.randbytes(32 * 1000)))[0])
    assert found.replaces == [SegmentName(0, b"w" * 16, 7)]


def test_rows_far_from_each_other_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is near is looked at where it is mapped. Both find the same, and no descriptor stays."""
    monkeypatch.setattr(segment, "FAR", 0)
    monkeypatch.setattr(file_map, "_SMALL", 0)
    ids = [b"\7" * 8 + bytes([number] * 24) for number in range(9)] + [noise(str(number), 32) for number in range(500)]
    path = tmp_path / "segment"
    path.write_bytes(make(ids))
    before = len(os.listdir("/proc/self/fd"))
    found = segment.parse(IDENTITY, map_file(path))
    assert found.file is not None and not found.at(np.empty(0, np.int64)).size
    at, rows, packs = found.find(keys_of(b"".join([*ids, bytes(32), b"\7" * 8 + b"\xff" * 24])))
    assert at.tolist() == list(range(len(ids)))
    assert found.at(rows)["offset"].tolist() == at.tolist()
    assert found.at(rows)["pack"].tolist() == packs.tolist() == (at % len(PACKS)).tolist()
    os.truncate(path, segment.HEADER_LENGTH + 8 * len(ids) + segment.ROW_LENGTH * len(ids) - 1)
    with pytest.raises(StoreIoError, match=f"{path} has become shorter"):
        found.at(np.array([0, len(ids) - 1]))
    del found
    assert len(os.listdir("/proc/self/fd")) == before


WHOLE_SEGMENT = make([random.Random(number).randbytes(32) for number in range(20)])
ENTRIES = b"".join(
    pack.ENTRY.pack(bytes([number] * 32), 64 + 156 * number, 100, 100 | 1 << 24, 0) for number in range(4)
)
PACK_HEADER = pack.encode_header(PackName(b"w" * 16, 3, META), 12345, 0)
PACK_TAIL = pack.encode_tail(IDENTITY, PACK_HEADER, ENTRIES, 64 + 156 * 4)
RECORD = point.PointRecord(vm_uuid="u", vm_name="n", created=1.5, disks=[])
POINT = point.encode(IDENTITY, PointName(b"w" * 16, 0), RECORD)


def damage(data: st.DataObject, whole: bytes) -> bytes:
    """Whole, cut, with some bytes changed, or anything at all."""
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for at, value in data.draw(st.dictionaries(st.integers(0, len(whole)), st.integers(0, 255), max_size=4)).items():
        if at < len(changed):
            changed[at] = value
    return bytes(changed) + data.draw(st.binary(max_size=3))


@settings(max_examples=300)
@given(st.data())
def test_damaged_segments(data: st.DataObject) -> None:
    harmed = damage(data, WHOLE_SEGMENT)
    try:
        found = parse(harmed)
    except segment.BadSegmentError:
        assert harmed != WHOLE_SEGMENT
        return
    assert segment.columns_intact(IDENTITY, memoryview(harmed)) == (harmed == WHOLE_SEGMENT)
    found.find(keys_of(random.Random(3).randbytes(32) + bytes(64)))


@settings(max_examples=300)
@given(st.data())
def test_damaged_packs(data: st.DataObject) -> None:
    header, tail = damage(data, PACK_HEADER), damage(data, PACK_TAIL)
    size = 64 + 156 * 4 + len(tail)
    try:
        assert pack.parse_header(header) == PackName(b"w" * 16, 3, META)
        assert pack.parse_footer(IDENTITY, header, tail, size).entries == ENTRIES
    except pack.BadPackError:
        assert (header, tail) != (PACK_HEADER, PACK_TAIL)


@pytest.mark.parametrize("at", [29, 30, 31, 40, 55])
def test_a_pack_of_a_later_version_is_not_taken_for_one_of_this(at: int) -> None:
    """Its header's checksum is right, but where zeros belong there is something."""
    header = bytearray(PACK_HEADER[:56])
    header[at] = 2
    with pytest.raises(pack.BadPackError, match="this version"):
        pack.parse_header(bytes(header) + xxh3_64_digest(bytes(header))[::-1])


@settings(max_examples=300)
@given(st.data())
def test_damaged_points(data: st.DataObject) -> None:
    harmed = damage(data, POINT)
    try:
        assert point.decode(IDENTITY, PointName(b"w" * 16, 0), harmed).record.vm_name == "n"
    except point.BadPointError:
        assert harmed != POINT


@given(st.binary(max_size=200))
def test_points_with_a_right_checksum_and_wrong_content(body: bytes) -> None:
    for text in (body, b"{" + body + b"}", b'{"created":0,"disks":[],"vm_name":"n","vm_uuid":"u","later":1}'):
        try:
            found = point.decode(IDENTITY, PointName(b"w" * 16, 0), text + IDENTITY.checksum(text))
        except point.BadPointError:
            continue
        assert found.record.vm_name == "n", "a field that a later version has added is ignored"


@given(st.binary(max_size=5000), st.booleans())
def test_records_come_back(plain: bytes, compressed: bool) -> None:
    compressor = record.compressor(1) if compressed else None
    made = record.seal(IDENTITY.chunk_id(plain), record.CHUNK, plain, compressor, CIPHER)
    stored = memoryview(made.header + bytes(made.payload))
    assert record.check_sum(stored)
    assert len(made.payload) <= len(plain)
    payload = record.payload(stored, made.id, made.meta)
    assert record.expand(made.id, payload, made.meta, record.decompressor(), CIPHER) == plain


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_no_payload_makes_a_record_fail(payload: bytes, meta: int) -> None:
    try:
        plain = record.expand(bytes(32), memoryview(payload), meta, record.decompressor(), CIPHER)
    except record.BadRecordError:
        return
    assert len(plain) == meta & 0xFFFFFF


def test_a_frame_that_swells_is_stopped() -> None:
    """16 MiB of zeros make a small frame; it claims to be 1000 bytes."""
    bomb = record.compressor(1).compress(bytes(16 << 20))
    meta = record.pack_meta(1000, record.CHUNK, record.ZSTD)
    with pytest.raises(record.BadRecordError):
        record.expand(bytes(32), memoryview(bomb), meta, record.decompressor(), CIPHER)


def test_a_frame_that_states_a_length_is_refused_before_anything_is_allocated() -> None:
    """The library believes the frame, whatever limit it is given: flipped bits could ask for any amount."""
    honest = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(bytes(1000))
    meta = record.pack_meta(1000, record.CHUNK, record.ZSTD)
    with pytest.raises(record.BadRecordError, match="states a length"):
        record.expand(bytes(32), memoryview(honest), meta, record.decompressor(), CIPHER)


@given(st.integers(0, 20), st.integers(1, 255))
def test_a_frame_with_wrong_bits_is_a_bad_record_or_right(at: int, flipped: int) -> None:
    plain = b"".join(b"line %d of some text\n" % number for number in range(4000))[:65536]
    frame = bytearray(record.compressor(1).compress(plain))
    frame[at] ^= flipped
    meta = record.pack_meta(len(plain), record.CHUNK, record.ZSTD)
    try:
        found = record.expand(bytes(32), memoryview(bytes(frame)), meta, record.decompressor(), CIPHER)
    except record.BadRecordError:
        return
    assert len(found) == len(plain)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**24 - 1), st.sampled_from([DATA, META]), st.integers(0, 9))
def test_names_come_back(wid: bytes, number: int, kind: int, level: int) -> None:
    assert parse_pack(PackName(wid, number, kind).key) == PackName(wid, number, kind)
    assert parse_segment(SegmentName(level, wid, number).key) == SegmentName(level, wid, number)
    assert parse_point(PointName(wid, number).key) == PointName(wid, number)


@given(st.text(max_size=60))
def test_foreign_names_are_nothing(key: str) -> None:
    for prefix in ("", "packs/", "index/", "points/"):
        assert parse_pack(prefix + key) is parse_segment(prefix + key) is parse_point(prefix + key) is None


@pytest.mark.parametrize("number", ["00", "01", "0000000001", "1234567890", "+1", "1 ", ""])
def test_numbers_have_one_spelling(number: str) -> None:
    """Else two names would mean one object, of which only one is there."""
    wid = bytes(16).hex()
    assert parse_segment(f"index/0/{wid}.1") and parse_point(f"points/{wid}.0") and parse_lease(f"lease/{wid}.9")
    assert parse_segment(f"index/0/{wid}.{number}") is parse_point(f"points/{wid}.{number}") is None
    assert parse_lease(f"lease/{wid}.{number}") is parse_partial(f"partial/{wid}.{number}") is None


def test_objects_of_others_are_in_nobodys_way(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    point = back_up(store, noise("a"))
    for folder in ("index/0", "points", "lease", "trash", "cond", "scrub", "partial", "damage", "packs"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in (f"{bytes(16).hex()}.007", "README", ".nfs0001"):
            (tmp_path / folder / name).write_bytes(b"somebody else's")
    assert restore(Store.open(tmp_path), point) == noise("a")
    assert list(Store.open(tmp_path).verify()) == []
    assert back_up(Store.open(tmp_path), noise("b"), 1)
    Store.open(tmp_path).prune()
    assert Store.open(tmp_path).repair().helpless == ()


@given(st.lists(IDS, max_size=30), st.integers(0, 2**32))
@settings(max_examples=20)
def test_many_ids_are_looked_up_in_parts(bunched: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    ids = sorted({*bunched, *(rng.randbytes(32) for _ in range(300))})
    held = [id for id in ids if rng.random() < 0.8]
    here = [[id for id in held if rng.random() < 0.6] for _ in range(2)]
    loaded = []
    for number, listed in enumerate(here):
        data = memoryview(make(listed))
        loaded.append(Loaded(SegmentName(0, b"s" * 16, number), segment.parse(IDENTITY, data), data, None))
    # A prune is about to delete the first pack of the first segment.
    loaded[0] = replace(loaded[0], kept=np.array([False, True, True]))
    view = IndexView(tuple(loaded), condemned=frozenset({PACKS[0].name}))
    asked = [*ids, *rng.choices(ids, k=50)]
    rng.shuffle(asked)
    small = [asked[first : first + 60] for first in range(0, len(asked), 60)]
    one_by_one = ([known for some in small for known in view.contains(some)], [view.locate(some) for some in small])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_TOGETHER", 1)
        assert view._parts(len(asked)) > 1
        assert view.contains(asked) == one_by_one[0]
        assert view.locate(asked) == [place for places in one_by_one[1] for place in places]
    kept = {id for at, id in enumerate(here[0]) if at % len(PACKS)} | set(here[1])
    assert one_by_one[0] == [id in kept for id in asked]


@pytest.mark.parametrize("gone", ["condemned", "cut off", "missing"])
def test_a_merged_segment_is_no_better_than_those_it_replaces(tmp_path: Path, gone: str) -> None:
    """A reader whose record has moved looks at the store anew, between a writer's merge and its use of that."""
    store = Store.create(tmp_path)
    for number in range(3):
        back_up(store, noise(number, 4 * CHUNK), float(number))
    packs = sorted((tmp_path / "packs").rglob("*.d"))
    for path in packs:
        if gone == "cut off":
            path.chmod(0o600)
            os.truncate(path, path.stat().st_size - 1)
        elif gone == "missing":
            path.unlink()
    backend, identity = store._backend, store._identity
    if gone == "condemned":
        names = [name for path in packs if (name := parse_pack(str(path.relative_to(tmp_path)))) is not None]
        key = condemned_key(new_writer_id())
        backend.put(key, encode_condemned(identity, names))
    ids = [identity.chunk_id(noise(1, 4 * CHUNK)[:CHUNK])]
    used = Store.open(tmp_path)._index
    assert used.reload().contains(ids) == [False]
    merged = merge(backend, identity, list(used.view.segments), new_writer_id(), 0)
    assert merged is not None
    used.reload()
    used.add(merged)
    assert used.view.contains(ids) == [False]
