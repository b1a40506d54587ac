"""Up to which byte a disk has been dealt with, when its blocks arrive in any order."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.extent import Extent


class LowWater:
    """Tracks delivery of `expected` (sorted, disjoint extents of a disk of `size` bytes).

    `mark` is the first byte that is still missing: everything expected below it has been delivered. `complete`: nothing
    is missing. Blocks must not overlap. Memory is bounded by how far deliveries run ahead of the slowest one.
    """

    def __init__(self, expected: Sequence[Extent], size: int) -> None:
        self._rest = iter(expected)
        self._size = size
        self._ahead: dict[int, int] = {}
        self.mark = self._end = 0
        self.complete = False
        self._next()

    def delivered(self, block: Extent) -> None:
        """Note that `block` has arrived."""
        self._ahead[block.offset] = block.end
        while (end := self._ahead.pop(self.mark, None)) is not None:
            self.mark = end
            if end >= self._end:
                self._next()

    def _next(self) -> None:
        """Everything up to the end of an extent is here: go on to the next one."""
        extent = next(self._rest, None)
        self.complete = extent is None
        self.mark, self._end = (self._size, self._size) if extent is None else (extent.offset, extent.end)
