"""The tree against a list of ids: any puts in any order, over any base, of any size."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mover.errors import StoreDamagedError
from mover.store.identity import ZERO_ID
from mover.store.page import FANOUT, BadPageError, decode, encode
from mover.store.pages import PageCache, StoredTree, count_chunks
from mover.store.partial import put_again
from mover.store.reader import DiskReader
from mover.store.tree import Tree
from mover.store.walk import leaves

CHUNK = 4


class PageShelf:
    """Pages and chunks in dictionaries, where a store has packs. Counts what is read and written."""

    far = False

    def __init__(self) -> None:
        self.pages: dict[bytes, bytes] = {}
        self.chunks: dict[bytes, tuple[int, int]] = {}
        self.reads = 0

    def get_many(self, ids: Sequence[bytes], kind: int) -> list[bytes]:
        self.reads += len(ids)
        if not all(id in self.pages for id in ids):
            raise StoreDamagedError("a page is gone")
        return [self.pages[id] for id in ids]

    def write(self, encoded: Sequence[bytes]) -> list[bytes]:
        ids = [hashlib.sha256(data).digest() for data in encoded]
        self.pages.update(zip(ids, encoded, strict=True))
        return ids

    def chunk(self, value: int, length: int) -> bytes:
        """The id of a chunk; value 0 is zeros."""
        if not value:
            return ZERO_ID
        id = hashlib.sha256(f"{value} {length}".encode()).digest()
        self.chunks[id] = (value, length)
        return id

    def recut(self, id: bytes, length: int) -> bytes:
        return self.chunk(self.chunks[id][0], length)

    def cache(self) -> PageCache:
        return PageCache(self)  # type: ignore[arg-type]

    def tree(self, size: int, **about: object) -> Tree:
        settled = {"base": None, "base_size": 0, "compare": None, "compare_size": 0, **about}
        return Tree(size, CHUNK, self.cache(), self.write, self.recut, **settled)  # type: ignore[arg-type]

    def content(self, root: bytes, size: int) -> dict[int, bytes]:
        found = {}
        tree = StoredTree(self.cache(), root, count_chunks(size, CHUNK))
        for first, ids in leaves(self.cache(), tree, lambda level, id: True):
            for position in range(FANOUT):
                id = ids[32 * position : 32 * position + 32]
                if id != ZERO_ID:
                    found[first + position] = id
        return found


def length_of(chunk: int, size: int) -> int:
    return min(size - chunk * CHUNK, CHUNK)


# Around the edges of leaves and of trees of one, two and three levels.
SIZES = st.one_of(
    st.integers(0, 600 * CHUNK),
    st.builds(
        lambda level, step: max(FANOUT**level * CHUNK + step, 0), st.integers(0, 2), st.integers(-2 * CHUNK, 2 * CHUNK)
    ),
    st.integers(0, (FANOUT**2 + 300) * CHUNK),
)
# Where chunks are (as a fraction of the disk), how many, and their values; 0 is zeros.
RUNS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 300), st.integers(0, 3)), max_size=8)


def place(runs: list[tuple[float, int, int]], size: int) -> dict[int, int]:
    """Values by chunk. A later run writes over an earlier one."""
    chunks = count_chunks(size, CHUNK)
    return {
        chunk: value
        for start, count, value in runs
        for chunk in range(int(start * chunks), min(int(start * chunks) + count, chunks))
    }


def put_all(shelf: PageShelf, tree: Tree, values: dict[int, int], size: int, order: str, *, advance: bool) -> bytes:
    chunks = sorted(values)
    groups = [chunks[at : at + 7] for at in range(0, len(chunks), 7)]
    if order == "backwards" and not advance:
        groups.reverse()
    for group in groups:
        for chunk in group:
            tree.put(chunk, shelf.chunk(values[chunk], length_of(chunk, size)))
        if advance:
            tree.advance(group[-1] + 1)
    return tree.finish()


@settings(max_examples=150, deadline=None)
@given(SIZES, RUNS, SIZES, RUNS, st.sampled_from(["forwards", "backwards"]), st.booleans(), st.booleans())
@example(3, [(0.0, 1, 1)], (FANOUT**2 + 1) * CHUNK, [], "forwards", True, True)
@example(3, [(0.0, 1, 1)], (FANOUT**2 + 1) * CHUNK, [], "forwards", True, False)
@example((FANOUT**2 + 1) * CHUNK, [(0.0, 300, 1)], 7, [], "forwards", True, True)
def test_tree_is_the_list_of_its_chunks(
    base_size: int,
    base_runs: list[tuple[float, int, int]],
    size: int,
    runs: list[tuple[float, int, int]],
    order: str,
    advance: bool,
    incremental: bool,
) -> None:
    shelf = PageShelf()
    below = place(base_runs, base_size)
    base = put_all(shelf, shelf.tree(base_size), below, base_size, order, advance=advance)
    assert shelf.content(base, base_size) == {
        chunk: shelf.chunk(value, length_of(chunk, base_size)) for chunk, value in below.items() if value
    }

    about = {"base": base, "base_size": base_size} if incremental else {"compare": base, "compare_size": base_size}
    tree = shelf.tree(size, **about)
    above = place(runs, size)
    root = put_all(shelf, tree, above, size, order, advance=advance)

    values = {chunk: value for chunk, value in (below if incremental else {}).items() if chunk * CHUNK < size} | above
    expected = {chunk: shelf.chunk(value, length_of(chunk, size)) for chunk, value in values.items() if value}
    assert shelf.content(root, size) == expected
    full = shelf.tree(size)
    again = put_all(shelf, full, values, size, "forwards", advance=True)
    assert again == root
    assert full.changed == sum(length_of(chunk, size) for chunk in expected)

    before = {chunk: shelf.chunk(value, length_of(chunk, base_size)) for chunk, value in below.items() if value}
    differing = [
        chunk
        for chunk in sorted(before.keys() | expected.keys())
        if before.get(chunk) != expected.get(chunk) and chunk * CHUNK < size
    ]
    assert tree.changed == sum(length_of(chunk, size) for chunk in differing)
    reader = DiskReader(None, shelf.cache(), root, size, CHUNK)  # type: ignore[arg-type]
    assert chunks_of(reader.diff(base, base_size)) == differing
    assert chunks_of(reader.extents()) == sorted(expected)
    extents = list(reader.extents())
    assert all(left.end < right.offset for left, right in itertools.pairwise(extents))
    assert not extents or extents[-1].end <= size


def chunks_of(extents: object) -> list[int]:
    return [chunk for extent in extents for chunk in range(extent.offset // CHUNK, -(-extent.end // CHUNK))]  # type: ignore[attr-defined]


class Shelved:
    """A look at the index: the chunks that are stored."""

    def __init__(self, stored: set[bytes]) -> None:
        self._stored = stored

    def contains(self, ids: Sequence[bytes]) -> list[bool]:
        return [id in self._stored for id in ids]


@settings(max_examples=150, deadline=None)
@example(FANOUT * CHUNK, [(0.0, 1, 0)], 1.0, [], False)
@given(SIZES, RUNS, st.floats(0, 1), st.lists(st.floats(0, 1, exclude_max=True), max_size=2), st.booleans())
def test_a_tree_that_was_begun_is_continued_up_to_what_is_lost(
    size: int, runs: list[tuple[float, int, int]], cut: float, lost: list[float], page: bool
) -> None:
    shelf = PageShelf()
    ids = {chunk: shelf.chunk(value or 1, length_of(chunk, size)) for chunk, value in place(runs, size).items()}
    # Every chunk has content of its own, so that losing one is losing one place.
    ids = {chunk: hashlib.sha256(id + chunk.to_bytes(8, "big")).digest() for chunk, id in ids.items()}
    killed = shelf.tree(size)
    done = int(cut * count_chunks(size, CHUNK))
    for chunk in sorted(chunk for chunk in ids if chunk < done):
        killed.put(chunk, ids[chunk])
        killed.advance(chunk)
    killed.advance(done)
    begun = killed.begun()
    assert begun.chunks == done // FANOUT * FANOUT

    kept = [chunk for chunk in sorted(ids) if chunk < begun.chunks]
    gone = sorted({kept[int(at * len(kept))] for at in lost}) if kept else []
    again = shelf.tree(size)
    if page and gone and begun.pages:
        del shelf.pages[begun.pages[-1].id]
    view = Shelved({id for chunk, id in ids.items() if chunk not in gone})
    known = put_again(shelf.cache(), view, again, begun)  # type: ignore[arg-type]
    assert known <= begun.chunks
    assert known == begun.chunks or gone, "all that is still there is used"
    assert all(chunk >= known for chunk in gone)
    for chunk in sorted(chunk for chunk in ids if chunk >= known):
        again.put(chunk, ids[chunk])
    straight = shelf.tree(size)
    for chunk, id in sorted(ids.items()):
        straight.put(chunk, id)
    assert again.finish() == straight.finish()
    finished = straight.begun()
    assert finished.chunks == count_chunks(size, CHUNK)
    third = shelf.tree(size)
    assert put_again(shelf.cache(), Shelved(set(ids.values())), third, finished) == finished.chunks  # type: ignore[arg-type]
    assert third.finish() == straight.finish()


def test_an_incremental_touches_only_its_path() -> None:
    shelf = PageShelf()
    size = FANOUT**3 * CHUNK
    filled = dict.fromkeys(range(0, 5 * FANOUT**2, 64), 1)
    base = put_all(shelf, shelf.tree(size), filled, size, "forwards", advance=True)
    shelf.reads, before = 0, len(shelf.pages)
    tree = shelf.tree(size, base=base, base_size=size)
    tree.put(100 * FANOUT, shelf.chunk(2, CHUNK))
    assert tree.finish() != base
    assert (shelf.reads, len(shelf.pages) - before, tree.changed) == (3, 3, CHUNK)
    untouched = shelf.tree(size, base=base, base_size=size)
    assert untouched.finish() == base
    assert shelf.reads == 3


def test_memory_does_not_grow_with_the_disk() -> None:
    shelf = PageShelf()
    tree = shelf.tree(FANOUT**3 * CHUNK)
    id = shelf.chunk(1, CHUNK)
    for leaf in range(0, FANOUT**2, 3):
        tree.put(leaf * FANOUT, id * FANOUT)
        tree.advance((leaf + 1) * FANOUT)
        assert sum(map(len, tree._pending)) <= 3
    tree.finish()


def test_puts_outside_are_refused() -> None:
    shelf = PageShelf()
    tree = shelf.tree(300 * CHUNK)
    tree.put(0, shelf.chunk(1, CHUNK))
    tree.advance(200)
    for first, count in ((0, 1), (127, 2), (299, 2), (300, 1)):
        with pytest.raises(ValueError, match="not to be put"):
            tree.put(first, shelf.chunk(1, CHUNK) * count)
    tree.put(128, shelf.chunk(1, CHUNK))


@given(st.integers(0, 8), st.dictionaries(st.integers(0, FANOUT - 1), st.integers(0, 2**256 - 1), max_size=12))
def test_pages_come_back(level: int, ids: dict[int, int]) -> None:
    joined = b"".join(ids.get(position, 0).to_bytes(32, "little") for position in range(FANOUT))
    if joined.strip(b"\0"):
        assert decode(level, encode(level, joined)) == joined


@given(st.binary(max_size=300), st.integers(0, 8))
def test_no_bytes_make_a_page_parser_fail(data: bytes, level: int) -> None:
    for candidate in (data, b"PG1" + bytes([level]) + data):
        try:
            ids = decode(level, candidate)
        except BadPageError:
            continue
        assert len(ids) == FANOUT * 32
