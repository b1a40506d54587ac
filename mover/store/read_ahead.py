"""Reading packs that are far away: who reads on where an earlier read ended gets what follows ahead of time.

Packs are written in the order in which disks are read, so a restore reads each from its beginning to its end. Blocks
of 4 MiB are fetched ahead then, several at once. Whoever jumps about reads exactly what was asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from mover.store.backend import Backend

BLOCK = 4 << 20
# Blocks at hand or under way: what bounds memory.
_KEPT = 6
_AHEAD = 2
# Packs of which it is remembered how far they were read; what begins so near that, before it because several threads
# read one disk together, or after it, is reading on; and so often makes it worth it.
_REMEMBERED = 64
_BEFORE = 8 << 20
_AFTER = 1 << 20
_OFTEN = 2

_Block = tuple[str, int]


class ReadAhead:
    """Ranges of the objects of `backend`, of which few are longer than `usual` bytes. Any thread may read."""

    def __init__(self, backend: Backend, usual: int) -> None:
        self._backend = backend
        self._last = -(-usual // BLOCK)
        self._blocks: OrderedDict[_Block, Future[bytes]] = OrderedDict()
        self._ends: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(_AHEAD, "mover-ahead")

    def get(self, key: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on; fewer at the end. Raises `ObjectMissingError`, `StoreIoError`."""
        blocks = [(key, number) for number in range(offset // BLOCK, -(-(offset + length) // BLOCK))]
        with self._lock:
            reading_on = self._reads_on(key, offset, offset + length)
            if not reading_on and not all(block in self._blocks for block in blocks):
                fetched = None
            else:
                fetched = [self._fetch(block) for block in blocks]
                following = range(blocks[-1][1] + 1, min(blocks[-1][1] + 1 + _AHEAD, self._last))
                for number in following:
                    self._fetch((key, number))
        if fetched is None:
            return self._backend.get(key, offset, length)
        try:
            data = b"".join(one.result() for one in fetched)
        except BaseException:
            with self._lock:
                for block in blocks:
                    self._blocks.pop(block, None)
            raise
        start = offset - blocks[0][1] * BLOCK
        return data[start : start + length]

    def close(self) -> None:
        """Forget everything; reads under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _reads_on(self, key: str, start: int, end: int) -> bool:
        """Whether this and the reads of the object before it began near where others ended; under the lock."""
        last, times = self._ends.pop(key, (-_AFTER - 1, 0))
        times = times + 1 if -_BEFORE <= start - last <= _AFTER else 0
        self._ends[key] = max(end, last) if times else end, times
        while len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)
        return times >= _OFTEN

    def _fetch(self, block: _Block) -> Future[bytes]:
        """A block at hand or under way; under the lock."""
        known = self._blocks.pop(block, None)
        if known is None:
            known = self._pool.submit(self._backend.get, block[0], block[1] * BLOCK, BLOCK)
        self._blocks[block] = known
        while len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)
        return known
