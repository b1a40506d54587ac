"""The disks of a restore point as exports of an NBD server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import EIO
from itertools import islice

from mover.errors import MoverError
from mover.serve.blocks import BLOCK, Block, Blocks
from mover.store import DiskReader, PointDisk
from protocol.extent import Extent
from protocol.nbd.server import Listed, MemoryRun, RefusedError, RequestError, Run, ZeroRun

# What one answer about holes looks through: leaves of the tree are read for it, 4 KiB for each 8 MiB with data.
_ALLOCATION_REACH = 4 << 30
# Extents in one answer: the server sends no more.
_MOST_EXTENTS = 2048

Warn = Callable[[str], None]


@dataclass(frozen=True)
class ServedDisk:
    """One disk: what the restore point says about it, and its content."""

    about: PointDisk
    reader: DiskReader


class Exports:
    """Exports by name: a disk's position; its name, where that is nothing else; and "", the first one."""

    def __init__(self, disks: Sequence[ServedDisk], blocks: Blocks, warn: Warn) -> None:
        self._disks = disks
        self._blocks = blocks
        self._warn = warn
        self._said = ""
        self._numbers: dict[str, int] = {}
        for name_of in (_first, _position, _name):
            for number, disk in enumerate(disks):
                self._numbers.setdefault(name_of(number, disk.about), number)

    def listed(self) -> tuple[Listed, ...]:
        """What clients are told when they ask what there is."""
        return tuple(Listed(disk.about.position, disk.about.name) for disk in self._disks)

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[_Export]:
        """The export for one connection. Raises `RefusedError` if there is none of this name."""
        number = self._numbers.get(name)
        if number is None:
            raise RefusedError(f"no disk {name}")
        export = _Export(self._disks[number].reader, number, self._blocks, self._failed)
        try:
            yield export
        finally:
            export.let_go()

    def _failed(self, number: int, error: MoverError) -> RequestError:
        """Say once what went wrong; clients tend to ask again."""
        about = self._disks[number].about
        message = f"disk {about.position} ({about.name}): {error}"
        if message != self._said:
            self._said = message
            self._warn(message)
        return RequestError(EIO)


def _first(number: int, disk: PointDisk) -> str:
    return disk.position if number else ""


def _position(number: int, disk: PointDisk) -> str:
    return disk.position


def _name(number: int, disk: PointDisk) -> str:
    return disk.name


class _Export:
    """A disk as the NBD server wants it, for one connection: holds the block that the last answer was taken from."""

    def __init__(
        self, reader: DiskReader, number: int, blocks: Blocks, failed: Callable[[int, MoverError], RequestError]
    ) -> None:
        self.size = reader.size
        self._reader = reader
        self._number = number
        self._blocks = blocks
        self._failed = failed
        self._held: Block | None = None

    def let_go(self) -> None:
        """Nothing that was given out is used any more."""
        if self._held is not None:
            self._blocks.give_back(self._held)
            self._held = None

    async def runs(self, offset: int, length: int) -> Iterable[Run]:
        self.let_go()
        try:
            self._held = await self._blocks.take(self._number, offset // BLOCK)
        except MoverError as error:
            raise self._failed(self._number, error) from error
        return list(_runs(self._held, offset, offset + length))

    async def allocation(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """For the beginning of the range at least, so that the answer takes bounded time on a disk of any size."""
        within = Extent(offset, min(length, _ALLOCATION_REACH))
        try:
            found = await self._blocks.call(lambda: list(islice(self._reader.extents(within), _MOST_EXTENTS)))
        except MoverError as error:
            raise self._failed(self._number, error) from error
        # Past the last extent of an answer that was cut short, nothing is known.
        end = min(within.end, found[-1].end) if len(found) == _MOST_EXTENTS else within.end
        return [(stop - start, hole) for start, stop, hole in _parts(found, offset, end)]


def _runs(block: Block, offset: int, end: int) -> Iterable[Run]:
    for start, stop, hole in _parts(block.filled, offset, end):
        first = start - block.extent.offset
        yield ZeroRun(stop - start) if hole else MemoryRun(block.slot[first : first + stop - start])


def _parts(filled: Iterable[Extent], offset: int, end: int) -> Iterable[tuple[int, int, bool]]:
    """The range from `offset` to `end` as (start, end, whether it is a hole), given what is none, in order."""
    at = offset
    for extent in filled:
        start, stop = max(extent.offset, offset), min(extent.end, end)
        if start >= stop:
            continue
        if start > at:
            yield at, start, True
        yield start, stop, False
        at = stop
    if at < end:
        yield at, end, True
