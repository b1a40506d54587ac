"""Reading a disk out of a store."""

from __future__ import annotations

from collections.abc import Iterator

from mover.store.identity import ID_LENGTH, ZERO_ID
from mover.store.index import split_ids
from mover.store.page import FANOUT
from mover.store.pages import PageCache, StoredTree, count_chunks
from mover.store.record import CHUNK, BadRecordError
from mover.store.records import Records
from mover.store.walk import differing_chunks
from protocol.extent import Extent, merge

# Chunks resolved and read together: bounds what one call holds, whatever the length of its view.
_BATCH = 16 << 20


class DiskReader:
    """The content `root` of a disk of `size` bytes. Any thread may read."""

    def __init__(self, records: Records, cache: PageCache, root: bytes, size: int, chunk_size: int) -> None:
        self.size = size
        self.root = root
        self._records = records
        self._cache = cache
        self._chunk_size = chunk_size
        self._chunks = count_chunks(size, chunk_size)
        self._tree = StoredTree(cache, root, self._chunks)

    def extents(self, within: Extent | None = None) -> Iterator[Extent]:
        """The parts that are stored, in order; everything else is zeros. Holes are skipped subtree by subtree.

        Of `within`, only what it takes to answer for this part is read; extents are whole chunks that reach into it.
        """
        return self._differing(ZERO_ID, 0, within or Extent(0, self.size))

    def diff(self, root: bytes, size: int) -> Iterator[Extent]:
        """The parts of this disk that differ from the content `root` of `size` bytes, in order, by whole chunks."""
        return self._differing(root, size, Extent(0, self.size))

    def _differing(self, root: bytes, size: int, within: Extent) -> Iterator[Extent]:
        other = StoredTree(self._cache, root, count_chunks(size, self._chunk_size))
        chunks = range(within.offset // self._chunk_size, count_chunks(min(within.end, self.size), self._chunk_size))
        start = end = 0
        for first, count in differing_chunks(self._cache, self._tree, other, chunks):
            if first > end:
                if end > start:
                    yield self._extent(start, end)
                start = first
            end = first + count
        # A chunk cut off by the end of either disk has an id of its own, even where what they share is the same.
        if end > start:
            yield self._extent(start, end)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the disk's bytes from `offset` on.

        Every chunk is compared with its id before it counts. Raises `StoreDamagedError`, and `ValueError` for a range
        that is not within the disk.
        """
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"bytes {offset} to {offset + len(view)} are not within the disk of {self.size} bytes")
        for start in range(0, len(view), _BATCH):
            self._read(offset + start, view[start : start + _BATCH])

    def differing(self, offset: int, view: memoryview) -> list[Extent]:
        """Which parts of `view`, by whole chunks, are not the disk's bytes from `offset` on, in order.

        Nothing but the tree is read. A chunk of which the view has only some counts as different.
        """
        chunk_size = self._chunk_size
        first = offset // chunk_size
        found: list[Extent] = []
        for chunk, id in enumerate(self._ids(first, count_chunks(offset + len(view), chunk_size)), first):
            start, end = self._span(chunk, offset, len(view))
            whole = end - start == min(self.size - chunk * chunk_size, chunk_size)
            if not whole or not self._is(view[start:end], id):
                found.append(Extent(offset + start, end - start))
        return merge(found)

    def _is(self, data: memoryview, id: bytes) -> bool:
        return bytes(len(data)).startswith(data) if id == ZERO_ID else self._records.id_of(data, CHUNK) == id

    def _read(self, offset: int, view: memoryview) -> None:
        chunk_size = self._chunk_size
        first = offset // chunk_size
        ids = self._ids(first, (offset + len(view) - 1) // chunk_size + 1)
        wanted: list[bytes] = []
        chunks: list[int] = []
        for chunk, id in enumerate(ids, first):
            if id == ZERO_ID:
                start, end = self._span(chunk, offset, len(view))
                view[start:end] = bytes(end - start)
            else:
                wanted.append(id)
                chunks.append(chunk)

        def take(number: int, data: bytes | memoryview) -> None:
            chunk = chunks[number]
            if len(data) != min(self.size - chunk * chunk_size, chunk_size):
                raise BadRecordError(f"a chunk of {len(data)} bytes stands where one of another length belongs")
            start, end = self._span(chunk, offset, len(view))
            skip = offset + start - chunk * chunk_size
            view[start:end] = data if end - start == len(data) else data[skip : skip + end - start]

        self._records.read(wanted, CHUNK, take)

    def _span(self, chunk: int, offset: int, length: int) -> tuple[int, int]:
        """Which part of a view of `length` bytes at `offset` a chunk fills."""
        start = chunk * self._chunk_size - offset
        return max(start, 0), min(start + self._chunk_size, length)

    def _ids(self, first: int, end: int) -> list[bytes]:
        """The ids of the chunks from `first` to before `end`."""
        pieces = []
        for number in range(first // FANOUT, -(-end // FANOUT)):
            ids = self._tree.ids(0, number)
            low, high = max(first - number * FANOUT, 0), min(end - number * FANOUT, FANOUT)
            pieces.append(ids[low * ID_LENGTH : high * ID_LENGTH])
        return split_ids(b"".join(pieces))

    def _extent(self, first: int, end: int) -> Extent:
        start = first * self._chunk_size
        return Extent(start, min(end * self._chunk_size, self.size) - start)
