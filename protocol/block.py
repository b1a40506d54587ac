"""A block: bytes of a disk in memory, on their way from whoever read them to whoever deals with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from protocol.extent import Extent


class Block(NamedTuple):
    """The bytes of a disk from `offset` on, in `view`; `wanted` are the extents in it that were asked for."""

    offset: int
    view: memoryview
    wanted: Sequence[Extent]

    def part(self, extent: Extent) -> memoryview:
        """The bytes of an extent that lies in it."""
        return self.view[extent.offset - self.offset : extent.end - self.offset]
