"""Building the tree of a disk's content while its chunks arrive, in memory that does not grow with the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

from mover.store import page
from mover.store.identity import ID_LENGTH, ZERO_ID
from mover.store.index import split_ids
from mover.store.page import FANOUT
from mover.store.pages import NO_IDS, Pages, StoredTree, count_chunks

# Writes encoded pages, returns their ids.
WritePages = Callable[[Sequence[bytes]], list[bytes]]
# Gives the id of a stored chunk after its length has been changed to this many bytes.
Recut = Callable[[bytes, int], bytes]


class PlacedPage(NamedTuple):
    """A page that is stored as `id` and stands on `level` as number `number`."""

    level: int
    number: int
    id: bytes


class Begun(NamedTuple):
    """How far a tree is: below chunk `chunks` nothing changes any more, and is zeros but for what is under `pages`."""

    chunks: int
    pages: list[PlacedPage]


class _Pending:
    """A page that is being filled: the ids put so far, and a bit for each."""

    __slots__ = ("ids", "put")

    def __init__(self) -> None:
        self.ids = bytearray(FANOUT * ID_LENGTH)
        self.put = 0


class Tree:
    """The content of one disk of `size` bytes.

    Chunks that are not put keep what `base` has there; without a base they are zeros. `compare` is a tree that serves
    for counting only. `changed` is the number of bytes that differ from `base`, or else `compare`, among the pages
    sealed so far; without either it counts all that is not zero. Any thread may put; ids may come in any order, but not
    below `advance`.
    """

    def __init__(
        self,
        size: int,
        chunk_size: int,
        cache: Pages,
        write: WritePages,
        recut: Recut,
        *,
        base: bytes | None,
        base_size: int,
        compare: bytes | None,
        compare_size: int,
    ) -> None:
        self.changed = 0
        self._size = size
        self._chunk_size = chunk_size
        self._chunks = count_chunks(size, chunk_size)
        self._root_level = page.root_level(self._chunks)
        self._cache = cache
        self._write = write
        self._recut = recut
        self._base = _stored(cache, base, base_size, chunk_size)
        self._base_size = base_size if base is not None else size
        self._other = self._base or _stored(cache, compare, compare_size, chunk_size)
        self._other_size = base_size if base is not None else compare_size if compare is not None else 0
        self._pending: list[dict[int, _Pending]] = [{} for _ in range(self._root_level + 1)]
        self._sealed_below = 0
        self._lock = Lock()
        self._root: bytes | None = None
        self._cut = self._touch_edge()

    def put(self, first_chunk: int, ids: bytes) -> None:
        """The ids (32 bytes each, joined; all zeros: a chunk of zeros) of consecutive chunks.

        Raises `ValueError` for chunks that lie outside of the disk or below the low-water mark.
        """
        with self._lock:
            if first_chunk < self._sealed_below or first_chunk + len(ids) // ID_LENGTH > self._chunks:
                raise ValueError(f"chunk {first_chunk} is not to be put: {self._sealed_below} to {self._chunks} are")
            self._put(0, first_chunk, ids)

    def _put(self, level: int, first: int, ids: bytes) -> None:
        done = 0
        count = len(ids) // ID_LENGTH
        while done < count:
            number, position = divmod(first + done, FANOUT)
            length = min(FANOUT - position, count - done)
            pending = self._pending[level].setdefault(number, _Pending())
            piece = ids[done * ID_LENGTH : (done + length) * ID_LENGTH]
            pending.ids[position * ID_LENGTH : (position + length) * ID_LENGTH] = piece
            pending.put |= ((1 << length) - 1) << position
            done += length

    def advance(self, chunk: int) -> None:
        """No chunk below this one will be put any more: write the pages that lie wholly below it."""
        with self._lock:
            if chunk // FANOUT > self._sealed_below // FANOUT:
                self._sealed_below = chunk // FANOUT * FANOUT
                limit = chunk
                # A leaf that is the root is whole as well, if the disk has exactly as many chunks as it has room for.
                for level in range(max(self._root_level, 1)):
                    limit //= FANOUT
                    self._seal(level, limit)

    def begun(self) -> Begun:
        """What is written already, as few pages that hold all others. A base is not part of it."""
        with self._lock:
            if self._root is not None:
                pages = [PlacedPage(self._root_level, 0, self._root)]
            else:
                pages = [
                    PlacedPage(level - 1, number * FANOUT + position, id)
                    for level in range(1, self._root_level + 1)
                    for number, pending in self._pending[level].items()
                    for position, id in enumerate(split_ids(bytes(pending.ids)))
                    if pending.put >> position & 1
                ]
            return Begun(self._sealed_below, [page for page in pages if page.id != ZERO_ID])

    def finish(self) -> bytes:
        """Write what is left; the root's id, which stands for the disk's whole content."""
        with self._lock:
            self._sealed_below = self._chunks
            if not self._chunks:
                return ZERO_ID
            for level in range(self._root_level + 1):
                self._seal(level, (self._chunks >> 7 * (level + 1)) + 1)
            if self._root is None:
                self._count_untouched()
            return self._base_root() if self._root is None else self._root

    def _base_root(self) -> bytes:
        return ZERO_ID if self._base is None else self._base.id(self._root_level, 0)

    def _seal(self, level: int, limit: int) -> None:
        """Write the pending pages of `level` with numbers below `limit`, and put their ids one level up."""
        numbers = sorted(number for number in self._pending[level] if number < limit)
        for first in range(0, len(numbers), FANOUT):
            batch = numbers[first : first + FANOUT]
            contents = [self._content(level, number) for number in batch]
            filled = [at for at, content in enumerate(contents) if content != NO_IDS]
            written = self._write([page.encode(level, contents[at]) for at in filled])
            ids = [ZERO_ID] * len(batch)
            for at, id in zip(filled, written, strict=True):
                ids[at] = id
            for number, id in zip(batch, ids, strict=True):
                if level == self._root_level:
                    self._root = id
                else:
                    self._put(level + 1, number, id)

    def _content(self, level: int, number: int) -> bytes:
        """The final ids of a page: what was put, over what the base has, cut at the disk's end."""
        pending = self._pending[level].pop(number)
        here = self._positions(level, number)
        whole = (1 << here) - 1
        ids = pending.ids
        if self._base is not None and pending.put & whole != whole:
            below = self._base.ids(level, number)
            for position in range(here):
                if not pending.put >> position & 1:
                    start = position * ID_LENGTH
                    id = below[start : start + ID_LENGTH]
                    if level == 0 and number * FANOUT + position == self._cut and id != ZERO_ID:
                        id = self._recut(id, self._chunk_length(self._cut))
                    ids[start : start + ID_LENGTH] = id
        ids[here * ID_LENGTH :] = bytes((FANOUT - here) * ID_LENGTH)
        content = bytes(ids)
        self._count(level, number, pending.put, content)
        return content

    def _positions(self, level: int, number: int) -> int:
        """How many of a page's positions lie within the disk."""
        units = -(-self._chunks // int(FANOUT**level))
        return min(max(units - number * FANOUT, 0), FANOUT)

    def _touch_edge(self) -> int | None:
        """Where base and disk differ in size: have the pages written anew on the way to the last chunk they share.

        That cuts what lies past a disk that shrank, and builds the pages above the base of one that grew. Returns that
        chunk if its length differs, too.
        """
        if self._base is None or self._base_size == self._size or not self._base.chunks or not self._chunks:
            return None
        last = min(self._base.chunks, self._chunks) - 1
        self._pending[0][last // FANOUT] = _Pending()
        had = min(self._base_size - last * self._chunk_size, self._chunk_size)
        return last if self._chunk_length(last) != had else None

    def _count(self, level: int, number: int, put: int, content: bytes) -> None:
        """Add what this page changes. A leaf is compared; above, only children nobody put are looked at."""
        here = self._positions(level, number)
        if level == 0:
            other = NO_IDS if self._other is None else self._other.ids(level, number)
            differing = (position for position in _differing(content, other) if position < here)
            self.changed += sum(self._chunk_length(number * FANOUT + position) for position in differing)
        elif self._base is None and self._other is not None:
            for position in range(here):
                if not put >> position & 1:
                    self.changed += self._data_below(level - 1, number * FANOUT + position)

    def _count_untouched(self) -> None:
        if self._base is None and self._other is not None:
            self.changed += self._data_below(self._root_level, 0)

    def _data_below(self, level: int, number: int) -> int:
        """Bytes of data that the other tree has under this page, and the disk, nothing having been put, has not."""
        assert self._other is not None
        if level > self._other.root_level + 1:
            return self._data_below(level - 1, 0) if number == 0 else 0
        ids = self._other.ids(level, number)
        if ids == NO_IDS:
            return 0
        positions = (position for position in _differing(ids, NO_IDS) if position < self._positions(level, number))
        if level == 0:
            return sum(self._chunk_length(number * FANOUT + position) for position in positions)
        return sum(self._data_below(level - 1, number * FANOUT + position) for position in positions)

    def _chunk_length(self, chunk: int) -> int:
        return min(self._size - chunk * self._chunk_size, self._chunk_size)


def _stored(cache: Pages, root: bytes | None, size: int, chunk_size: int) -> StoredTree | None:
    return None if root is None else StoredTree(cache, root, count_chunks(size, chunk_size))


def _differing(left: bytes, right: bytes) -> list[int]:
    """The positions at which two pages differ."""
    if left == right:
        return []
    return [
        position
        for position in range(FANOUT)
        if left[position * ID_LENGTH : (position + 1) * ID_LENGTH]
        != right[position * ID_LENGTH : (position + 1) * ID_LENGTH]
    ]
