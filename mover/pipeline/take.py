"""What is done with a block: blocking work, in the thread that has it, or in one of the worker threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from protocol.block import Block
from protocol.tasks import in_thread


@dataclass(frozen=True)
class Take:
    """`here` gets blocks of one disk that are there at the same time.

    It may be called in several threads at once, and the views may be reused once it returns.
    """

    executor: Executor
    here: Callable[[Sequence[Block]], None]

    async def __call__(self, block: Block) -> None:
        """Do it in a worker thread: for those who have the block on the event loop."""
        await in_thread(self.executor, self.here, [block])
