"""Chunks of one disk out of the store, read ahead in worker threads, in disk order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import Executor

from mover.store import DiskReader
from protocol.arena import Arena
from protocol.extent import Extent


async def blocks_in_order(
    reader: DiskReader, blocks: Iterable[Extent], arena: Arena, executor: Executor, ahead: int = 4
) -> AsyncGenerator[tuple[Extent, memoryview], None]:
    """Yield each of `blocks` (each at most a slot long) with its content; at most `ahead` slots are held.

    A view is valid until the next one is asked for. Use it with `contextlib.aclosing`: leaving early then waits for
    the reads under way. Raises `StoreDamagedError`.
    """
    loop = asyncio.get_running_loop()
    window: deque[tuple[Extent, memoryview, asyncio.Future[None]]] = deque()
    waiting = iter(blocks)
    exhausted = False
    try:
        while True:
            while not exhausted and len(window) < ahead:
                if window and arena.exhausted:
                    break  # waiting for a slot while holding some is how several disks would starve each other
                block = next(waiting, None)
                if block is None:
                    exhausted = True
                    break
                slot = await arena.acquire()
                view = slot[: block.length]
                window.append((block, slot, loop.run_in_executor(executor, reader.read_into, block.offset, view)))
            if not window:
                return
            block, slot, reading = window[0]
            await asyncio.shield(reading)
            yield block, slot[: block.length]
            window.popleft()
            arena.release(slot)
    finally:
        # A thread writes into its slot until it is done, whoever lost interest in it.
        pending = [reading for _, _, reading in window if not reading.done()]
        if pending:
            await asyncio.wait(pending)
        for _, slot, reading in window:
            if not reading.cancelled():
                reading.exception()
            arena.release(slot)
