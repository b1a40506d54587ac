"""What is done with a block: blocking work, in the thread that has it, or in one of the worker threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from protocol.extent import Extent
from protocol.tasks import in_thread


@dataclass(frozen=True)
class Take:
    """`here` gets the disk offset of a view, the view, and the extents in it that were asked for.

    It may be called in several threads at once, and the view may be reused once it returns.
    """

    executor: Executor
    here: Callable[[int, memoryview, Sequence[Extent]], None]

    async def __call__(self, offset: int, view: memoryview, wanted: Sequence[Extent]) -> None:
        """Do it in a worker thread: for those who have the block on the event loop."""
        await in_thread(self.executor, self.here, offset, view, wanted)
