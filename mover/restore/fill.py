"""Make a file hold what it should, writing only where it does not.

What the file holds is found out by looking at it: chunks are compared with their ids, so nothing of them is read from
the store. Whatever an interrupted restore, a crash or another restore point has left there, the result is the same,
and nothing has to be written down about how far it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Protocol, TypeVar

from mover.restore.layout import Checked, Given, Layout, Part
from mover.restore.progress import RestoreProgress
from mover.restore.writeback import Writeback
from protocol.arena import Arena
from protocol.extent import Extent, split, total
from protocol.tasks import settled, task_group

_CARRIERS = 8
_ZEROS = bytes(1 << 20)
# So many pieces that should be zeros are looked at before anybody can interrupt.
_PIECES = 64

_Result = TypeVar("_Result")


class Holds(Protocol):
    """What the parts of a layout are parts of."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """See `mover.store.DiskReader`."""
        ...

    def differing(self, offset: int, view: memoryview) -> list[Extent]:
        """See `mover.store.DiskReader`."""
        ...


class _DifferentError(Exception):
    """The file does not hold what it should."""


@dataclass(frozen=True)
class Filled:
    """An open file and what it should hold. `fresh`: nothing is in it. With a `writeback` it is mended."""

    descriptor: int
    layout: Layout
    reader: Holds
    fresh: bool
    writeback: Writeback | None

    def settle(self, part: Part, room: memoryview) -> int:
        """Look after one part; the number of bytes that were read from the store for it."""
        there = not self.fresh and _has_data(self.descriptor, part.at, part.length)
        if isinstance(part, Given):
            self._settle_given(part, there=there)
            return 0
        extent = part.extent
        view = room[: extent.length]
        wrong = [extent]
        if there:
            _read(self.descriptor, view, part.at)
            wrong = self.reader.differing(extent.offset, view)
        for piece in wrong:
            self._writing()
            at = piece.offset - extent.offset
            self.reader.read_into(piece.offset, view[at : at + piece.length])
            self._put(view[at : at + piece.length], part.at + at)
        if isinstance(part, Checked):
            self._settle_given(Given(part.at + extent.length, part.tail(view)), there=there)
        return total(wrong)

    def _settle_given(self, part: Given, *, there: bool) -> None:
        if not there or os.pread(self.descriptor, part.length, part.at) != part.data:
            self._put(memoryview(part.data), part.at)

    def stale(self) -> Iterator[Extent]:
        """What lies between the parts and is no hole, in pieces of at most 1 MiB; an empty one for each gap."""
        for gap in _between(self.layout):
            yield Extent(gap.offset, 0)
            yield from split(_data_within(self.descriptor, gap), len(_ZEROS))

    def clear(self, pieces: Iterator[Extent]) -> bool:
        """Look after a few of `pieces`, which are to be zeros. Whether there were any left."""
        room = memoryview(bytearray(len(_ZEROS)))
        some = list(islice(pieces, _PIECES))
        for piece in some:
            view = room[: piece.length]
            _read(self.descriptor, view, piece.offset)
            if not _ZEROS.startswith(view):
                self._put(memoryview(_ZEROS)[: piece.length], piece.offset)
        return bool(some)

    def _put(self, view: memoryview, at: int) -> None:
        writeback = self._writing()
        written = 0
        while written < len(view):
            written += os.pwrite(self.descriptor, view[written:], at + written)
        writeback.wrote(written)

    def _writing(self) -> Writeback:
        if self.writeback is None:
            raise _DifferentError
        return self.writeback


async def fill(
    descriptor: int,
    layout: Layout,
    reader: Holds,
    arena: Arena,
    executor: Executor,
    progress: RestoreProgress,
) -> None:
    """Make an open file hold what `layout` says, durably. Raises OSError and what the store raises.

    The slots of `arena` are at least as long as the parts of `layout`.
    """
    fresh = os.fstat(descriptor).st_size == 0
    os.ftruncate(descriptor, layout.length)
    await _go_through(Filled(descriptor, layout, reader, fresh, Writeback(descriptor)), arena, executor, progress)
    await _in_thread(executor, partial(os.fsync, descriptor))


async def is_filled(
    descriptor: int,
    layout: Layout,
    reader: Holds,
    arena: Arena,
    executor: Executor,
    progress: RestoreProgress,
) -> bool:
    """Whether an open file holds what `layout` says, and nothing else. Nothing is written."""
    if os.fstat(descriptor).st_size != layout.length:
        return False
    same = True
    try:
        await _go_through(Filled(descriptor, layout, reader, False, None), arena, executor, progress)
    except* _DifferentError:
        same = False
    return same


async def _go_through(filled: Filled, arena: Arena, executor: Executor, progress: RestoreProgress) -> None:
    if not filled.fresh:
        stale = filled.stale()
        while await _in_thread(executor, partial(filled.clear, stale)):
            pass
    parts = filled.layout.parts()
    async with task_group() as group:
        for _ in range(_CARRIERS):
            group.create_task(_carry(filled, parts, arena, executor, progress))


async def _carry(
    filled: Filled, parts: Iterator[Part], arena: Arena, executor: Executor, progress: RestoreProgress
) -> None:
    for part in parts:
        async with arena.slot() as slot:
            read = await _in_thread(executor, partial(filled.settle, part, slot))
        if not isinstance(part, Given):
            progress.add(part.extent.length, found=part.extent.length - read)


async def _in_thread(executor: Executor, work: Callable[[], _Result]) -> _Result:
    return await settled(asyncio.get_running_loop().run_in_executor(executor, work))


def _between(layout: Layout) -> Iterator[Extent]:
    """What of the file belongs to no part."""
    position = 0
    for part in chain(layout.parts(), [Given(layout.length, b"")]):
        if part.at > position:
            yield Extent(position, part.at - position)
        position = part.at + part.length


def _data_within(descriptor: int, extent: Extent) -> Iterator[Extent]:
    """What of a range of the file is no hole."""
    position = extent.offset
    while (start := _next(descriptor, position, os.SEEK_DATA)) < extent.end:
        position = min(_next(descriptor, start, os.SEEK_HOLE), extent.end)
        yield Extent(start, position - start)


def _has_data(descriptor: int, at: int, length: int) -> bool:
    return _next(descriptor, at, os.SEEK_DATA) < at + length


def _next(descriptor: int, position: int, what: int) -> int:
    """The next byte from `position` on that is data or a hole; past every file if there is none.

    This moves the file's position, which nothing here relies on.
    """
    try:
        return os.lseek(descriptor, position, what)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 1 << 63


def _read(descriptor: int, view: memoryview, at: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], at + done)
        if not got:
            raise OSError(errno.EIO, "the file has become shorter")
        done += got
