"""How many pages are read along with one: many where they are read one after another, none elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mover.store import Store
from mover.store.pages import StoredTree
from mover.store.records import Records
from tests.store_fixtures import CHUNK, text

LEAF = 128


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StoredTree, list[int]]:
    """A tree of 64 leaves, all different, and how many records each time were read for it."""
    chunks = 64 * LEAF
    store = Store.create(tmp_path)
    with store.writer() as writer:
        made = writer.tree(chunks * CHUNK)
        for chunk in range(0, chunks, LEAF):
            made.put(chunk, writer.seal(memoryview(text(chunk))).ids)
        root = made.finish()
    again = Store.open(tmp_path)
    read: list[int] = []
    get_many = Records.get_many

    def counted(self: Records, ids: Sequence[bytes], kind: int) -> list[bytes]:
        read.append(len(ids))
        return get_many(self, ids, kind)

    monkeypatch.setattr(Records, "get_many", counted)
    return StoredTree(again._cache, root, chunks), read


def test_leaves_read_one_after_another_are_read_many_at_once(tree: tuple[StoredTree, list[int]]) -> None:
    pages, read = tree
    leaves = [pages.ids(0, number) for number in range(64)]
    assert len(set(leaves)) == 64
    # The root and the first leaf, then the second one and those behind it.
    assert read == [1, 1, 16, 16, 16, 15]


def test_leaves_here_and_there_are_read_alone(tree: tuple[StoredTree, list[int]]) -> None:
    pages, read = tree
    for number in (60, 3, 40, 17):
        pages.ids(0, number)
    assert read == [1, 1, 1, 1, 1]
