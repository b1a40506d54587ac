"""Up to which byte a disk has been dealt with, when its blocks arrive in any order."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.extent import Extent


class LowWater:
    """Tracks delivery of `expected` (sorted, disjoint extents of a disk of `size` bytes).

    `mark` is the first byte that is still missing: everything expected below it has been delivered. Blocks must not
    overlap. Memory is bounded by how far deliveries run ahead of the slowest one.
    """

    def __init__(self, expected: Sequence[Extent], size: int) -> None:
        self._expected = expected
        self._size = size
        self._current = 0
        self._ahead: dict[int, int] = {}
        self.mark = expected[0].offset if expected else size

    def delivered(self, block: Extent) -> None:
        """Note that `block` has arrived."""
        self._ahead[block.offset] = block.end
        while (end := self._ahead.pop(self.mark, None)) is not None:
            self.mark = end
            if end >= self._expected[self._current].end:
                self._current += 1
                done = self._current == len(self._expected)
                self.mark = self._size if done else self._expected[self._current].offset

    @property
    def complete(self) -> bool:
        """Whether everything expected has arrived."""
        return self._current == len(self._expected)
