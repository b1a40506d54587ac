"""A disk over NBD: several connections, the extents shared among them."""

from __future__ import annotations

from collections.abc import Sequence

from mover.pipeline.pace import Pace
from mover.source import Take
from protocol.arena import Arena
from protocol.extent import Extent
from protocol.nbd import NbdReader


class NbdSource:
    """Reads through an open `NbdReader`; with `merge_gaps` short gaps are read along where that is faster."""

    def __init__(self, reader: NbdReader, pace: Pace, *, merge_gaps: bool = True) -> None:
        self._reader = reader
        self._pace = pace
        self._merge_gaps = merge_gaps

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """See `mover.source.Source`."""
        stats = await self._reader.read(extents, arena, take.here, merge_gaps=self._merge_gaps, pace=self._pace.reserve)
        return stats.bytes_read
