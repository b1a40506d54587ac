"""Blocks of one disk into the store: seal the chunks, put their ids in the tree, count what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock

from mover.pipeline.low_water import LowWater
from mover.pipeline.take import Take
from mover.store import ID_LENGTH, Tree, Writer
from protocol.block import Block
from protocol.extent import Extent, total
from protocol.tasks import in_thread


@dataclass(slots=True)
class Counts:
    """Bytes of disk by what became of them; `stored` is bytes of packs. `done` is all that was sealed."""

    done: int = 0
    zero: int = 0
    known: int = 0
    new: int = 0
    stored: int = 0


class Intake:
    """Takes the blocks of one disk, in any order, from several threads at once: give them to `take`.

    Of each block the wanted parts are sealed. `take` raises what the store raises (`StoreFullError` and the like).
    `expected` are the extents that will come, aligned to chunks (the last one may end at the disk's size). `progress`
    is called at most every `interval` seconds, on the event loop.
    """

    def __init__(
        self,
        writer: Writer,
        tree: Tree,
        expected: Sequence[Extent],
        size: int,
        chunk_size: int,
        executor: Executor,
        progress: Callable[[Counts], None],
        interval: float = 0.2,
    ) -> None:
        self.counts = Counts()
        self.take = Take(executor, self._seal)
        self._writer = writer
        self._tree = tree
        self._low_water = LowWater(expected, size)
        self._chunk_size = chunk_size
        self._executor = executor
        self._progress = progress
        self._interval = interval
        self._reported = 0.0
        self._lock = Lock()
        self._loop = asyncio.get_running_loop()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._reported >= self._interval:
            self._reported = now
            self._loop.call_soon_threadsafe(self._progress, self.counts)

    def _seal(self, blocks: Sequence[Block]) -> None:
        wanted = [extent for block in blocks for extent in block.wanted]
        sealed = self._writer.seal_all([block.part(extent) for block in blocks for extent in block.wanted])
        with self._lock:
            ids, chunk_size = sealed.ids, self._chunk_size
            for extent in wanted:
                length = -(-extent.length // chunk_size) * ID_LENGTH
                self._tree.put(extent.offset // chunk_size, ids[:length])
                ids = ids[length:]
                self._low_water.delivered(extent)
            counts = self.counts
            counts.done += total(wanted)
            counts.zero += sealed.zero
            counts.known += sealed.known
            counts.new += sealed.new
            counts.stored += sealed.stored
            self._tree.advance(self._low_water.mark // chunk_size)
        self._tell()

    async def skip(self, extent: Extent) -> None:
        """Nothing but zeros is in `extent`, and no base has anything there: it is delivered without being read."""
        await in_thread(self._executor, self._skip, extent)

    def _skip(self, extent: Extent) -> None:
        with self._lock:
            self.counts.done += extent.length
            self.counts.zero += extent.length
            self._low_water.delivered(extent)
            self._tree.advance(self._low_water.mark // self._chunk_size)
        self._tell()

    def finish(self) -> bytes:
        """Write what is left of the tree and return its root id. Blocking: call it in a worker thread.

        Raises `RuntimeError` if a block is missing: that would be a bug of a source, never a property of a disk.
        """
        if not self._low_water.complete:
            raise RuntimeError(f"the source left out the block at byte {self._low_water.mark}")
        return self._tree.finish()
