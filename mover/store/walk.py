"""Walking trees: only where they differ, a page of pages at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mover.store.identity import ID_LENGTH, ZERO_ID
from mover.store.page import FANOUT
from mover.store.pages import NO_IDS, PageCache, StoredTree
from mover.store.tree import PlacedPage

# Called with the level and id of a page; False skips it.
Enter = Callable[[int, bytes], bool]


def differing_chunks(
    cache: PageCache, tree: StoredTree, other: StoredTree, within: range | None = None
) -> Iterator[tuple[int, int]]:
    """Runs (first chunk, count) within `tree` whose ids differ from those of `other`, in order.

    `within` are chunks; pages that hold none of them are not looked at.
    """
    level = tree.root_level
    bounds = range(tree.chunks) if within is None else within
    for first, ours, theirs in _differing_leaves(cache, tree, other, bounds, level, 0, tree.ids(level, 0)):
        yield from _runs(first, ours, theirs, bounds)


def _differing_leaves(
    cache: PageCache, tree: StoredTree, other: StoredTree, within: range, level: int, number: int, ours: bytes
) -> Iterator[tuple[int, bytes, bytes]]:
    """First chunk and both sets of ids of every leaf below a page of `tree` that may differ and meets `within`."""
    theirs = _ids_of(other, level, number)
    if theirs is not None and ours == theirs:
        return
    if level == 0:
        yield number * FANOUT, ours, theirs or NO_IDS
        return
    reach = int(FANOUT**level)
    low = max(within.start // reach - number * FANOUT, 0)
    high = min(-(-within.stop // reach) - number * FANOUT, FANOUT)
    positions = [at for at in range(low, high) if theirs is None or _at(ours, at) != _at(theirs, at)]
    for at, child in zip(positions, cache.get_many(level - 1, [_at(ours, at) for at in positions]), strict=True):
        yield from _differing_leaves(cache, tree, other, within, level - 1, number * FANOUT + at, child)


def _ids_of(tree: StoredTree, level: int, number: int) -> bytes | None:
    """A page's ids; None where this tree is so much lower that only its root's place below this page is known."""
    if level > tree.root_level + 1 and number == 0 and tree.root != ZERO_ID:
        return None
    return tree.ids(level, number)


def _runs(first: int, ours: bytes, theirs: bytes, within: range) -> Iterator[tuple[int, int]]:
    start = None
    last = min(FANOUT, within.stop - first)
    for at in range(max(within.start - first, 0), last):
        if _at(ours, at) != _at(theirs, at):
            start = at if start is None else start
        elif start is not None:
            yield first + start, at - start
            start = None
    if start is not None:
        yield first + start, last - start


def _at(ids: bytes, position: int) -> bytes:
    return ids[position * ID_LENGTH : (position + 1) * ID_LENGTH]


def leaves(cache: PageCache, tree: StoredTree, enter: Enter) -> Iterator[tuple[int, bytes]]:
    """First chunk and ids of every leaf with data of `tree`, without what `enter` skips."""
    if tree.root != ZERO_ID and enter(tree.root_level, tree.root):
        yield from _leaves_below(cache, tree.root_level, 0, cache.get(tree.root_level, tree.root), enter)


def leaves_under(cache: PageCache, placed: PlacedPage) -> Iterator[tuple[int, bytes]]:
    """First chunk and ids of every leaf with data under a page, or of the page itself if it is one."""
    ids = cache.get(placed.level, placed.id)
    yield from _leaves_below(cache, placed.level, placed.number, ids, lambda level, id: True)


def _leaves_below(cache: PageCache, level: int, number: int, ids: bytes, enter: Enter) -> Iterator[tuple[int, bytes]]:
    if level == 0:
        yield number * FANOUT, ids
        return
    positions = [at for at in range(FANOUT) if _at(ids, at) != ZERO_ID and enter(level - 1, _at(ids, at))]
    for at, child in zip(positions, cache.get_many(level - 1, [_at(ids, at) for at in positions]), strict=True):
        yield from _leaves_below(cache, level - 1, number * FANOUT + at, child, enter)
