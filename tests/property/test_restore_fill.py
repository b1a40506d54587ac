"""Whatever is in a file before: after a restore it holds the disk, and no more was read than was missing."""

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mover.restore.fill import fill, is_filled
from mover.restore.layout import DiskContent, Layout, Stored, raw_layout, vhd_layout
from mover.restore.progress import RestoreProgress
from mover.store import DiskReader, PointDisk, Store
from protocol.arena import Arena
from protocol.extent import total
from tests.store_fixtures import CHUNK, back_up, noise

# Chunks of a disk of up to five blocks of a VHD, by what is in them: None is zeros.
CHUNKS = 70
DISKS = st.tuples(
    st.lists(st.sampled_from([None, None, "a", "b"]), min_size=1, max_size=CHUNKS),
    st.sampled_from([CHUNK, 512, CHUNK - 512]),
)
# What was in the file: as the disk is, another chunk, zeros, or a hole; and what becomes of it.
BEFORE = st.lists(st.sampled_from(["same", "same", "noise", "zeros", "hole", "half"]), min_size=1, max_size=CHUNKS)


def disk_of(kinds: list[str | None], last: int) -> bytes:
    """The content of a disk, the last chunk of which has `last` bytes."""
    chunks = [bytes(CHUNK) if kind is None else noise(kind) for kind in kinds]
    return b"".join(chunks)[: (len(chunks) - 1) * CHUNK + last]


def left_behind(path: Path, wanted: bytes, states: list[str], surplus: int) -> None:
    """A file like `wanted` but for the states of its pieces, and for `surplus` bytes more or less."""
    with path.open("wb") as file:
        for at in range(0, len(wanted), CHUNK):
            piece = wanted[at : at + CHUNK]
            state = states[at // CHUNK % len(states)]
            if state == "half":
                piece = piece[: len(piece) // 2] + bytes(len(piece) - len(piece) // 2)
            elif state != "same":
                piece = noise("stale", len(piece)) if state == "noise" else bytes(len(piece))
            if state != "hole":
                os.pwrite(file.fileno(), piece, at)
        file.truncate(max(len(wanted) + surplus, 0))


def wrong_chunks(path: Path, layout: Layout, data: bytes) -> int:
    """Bytes of the disk's chunks that the file does not hold as they are."""
    found = path.read_bytes()
    wrong = 0
    for part in layout.parts():
        if isinstance(part, Stored):
            for at in range(0, part.length, CHUNK):
                length = min(CHUNK, part.length - at)
                wanted = data[part.extent.offset + at :][:length]
                wrong += length if found[part.at + at :][:length] != wanted else 0
    return wrong


async def filled(path: Path, layout: Layout, reader: DiskReader, data_length: int, *, check: bool) -> tuple[bool, int]:
    """Fill the file, or only look whether it is; and how much was read for that."""
    disk = PointDisk(position="0", name="", vdi_uuid="", size=reader.size, root=reader.root)
    progress = RestoreProgress("vm", disk, data_length, lambda event: None)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    with ThreadPoolExecutor(2) as executor:
        try:
            if check:
                right = await is_filled(descriptor, layout, reader, Arena(4), executor, progress)
            else:
                await fill(descriptor, layout, reader, Arena(4), executor, progress)
                right = True
        finally:
            os.close(descriptor)
    return right, data_length - progress.found


@pytest.mark.parametrize("layout_of", [raw_layout, vhd_layout])
@settings(max_examples=20)
@given(disk=DISKS, states=BEFORE, surplus=st.sampled_from([0, 0, -CHUNK, 5000, -(1 << 30)]))
def test_a_file_is_the_disk_afterwards(layout_of, disk, states, surplus) -> None:
    data = disk_of(*disk)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(str(Path(folder, "store")))
        back_up(store, data)
        reader = store.disk(store.point("latest").record.disks[0].root, len(data))
        extents = list(reader.extents())
        layout = layout_of(DiskContent(len(data), extents, UUID(int=4 << 76 | 2 << 62)), 2 << 20)
        fresh, stale = Path(folder, "fresh"), Path(folder, "stale")
        assert asyncio.run(filled(fresh, layout, reader, total(extents), check=False)) == (True, total(extents))
        wanted = fresh.read_bytes()
        assert len(wanted) == layout.length
        if layout_of is raw_layout:
            assert wanted == data
        left_behind(stale, wanted, states, surplus)
        right = stale.read_bytes() == wanted
        missing = wrong_chunks(stale, layout, data)
        before = stale.read_bytes()
        assert asyncio.run(filled(stale, layout, reader, total(extents), check=True))[0] == right
        assert stale.read_bytes() == before
        assert asyncio.run(filled(stale, layout, reader, total(extents), check=False)) == (True, missing)
        assert stale.read_bytes() == wanted
        store.close()


@settings(max_examples=50)
@given(
    kinds=st.lists(st.sampled_from([None, "a", "b"]), min_size=1, max_size=8),
    last=st.sampled_from([CHUNK, 512]),
    edges=st.tuples(st.integers(0, 8 * CHUNK), st.integers(0, 8 * CHUNK)),
    aligned=st.booleans(),
    flips=st.sets(st.integers(0, 8 * CHUNK), max_size=3),
)
def test_what_differs_is_known_without_reading_it(kinds, last, edges, aligned, flips) -> None:
    """Whole chunks are compared; one of which the view has only a part counts as different."""
    data = disk_of(kinds, last)
    start, end = sorted(min(edge // CHUNK * CHUNK if aligned else edge, len(data)) for edge in edges)
    view = bytearray(data[start:end])
    for at in flips:
        if start <= at < end:
            view[at - start] ^= 1
    expected = set()
    for chunk in range(0, len(data), CHUNK):
        stop = min(chunk + CHUNK, len(data))
        inside = range(max(chunk, start), min(stop, end))
        if inside and (inside != range(chunk, stop) or view[chunk - start : stop - start] != data[chunk:stop]):
            expected |= {inside}
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(str(Path(folder, "store")))
        back_up(store, data)
        reader = store.disk(store.point("latest").record.disks[0].root, len(data))
        found = reader.differing(start, memoryview(view))
        store.close()
    assert all(extent.length > 0 for extent in found)
    covered = [range(extent.offset, extent.end) for extent in found]
    assert sum(map(len, covered)) == sum(map(len, expected))
    assert all(any(inside[0] in one and inside[-1] in one for one in covered) for inside in expected)
