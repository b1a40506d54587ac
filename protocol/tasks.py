"""Task groups whose failure is one error, not a tree of them; and waiting for threads, which nothing can cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar, TypeVarTuple

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first error of its tasks itself; the others become notes on it.

    Whoever catches by type, as in `except StoreFullError`, need not care whether the work was done by one task or by
    several.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors.exceptions[0].__cause__


async def settled(work: asyncio.Future[_Result]) -> _Result:
    """The result of what a thread does.

    Who is cancelled meanwhile waits all the same until the thread is done, and no longer uses what it was given.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if not work.done():
            await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody else asks for it, and asyncio would complain about that
        raise


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a tree of exception groups, with the messages of the others as notes."""
    leaves = list(_leaves(error))
    for other in leaves[1:]:
        leaves[0].add_note(f"also: {type(other).__name__}: {other}")
    return leaves[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in _leaves(child)]
    return [error]


async def interruptible(
    executor: Executor, interrupt: Callable[[], None], work: Callable[[*_Arguments], _Result], *arguments: *_Arguments
) -> _Result:
    """Do blocking work in a worker thread that may wait for somebody else.

    Who is cancelled calls `interrupt`, which has to make the thread end soon, and waits for that.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        interrupt()
        if not future.done():
            await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody else asks for it, and asyncio would complain about that
        raise


async def in_thread(executor: Executor, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """Do blocking work in a worker thread.

    Cancelling the wait does not stop the thread, which still uses what it was given: who is cancelled waits for its
    end all the same.
    """
    return await settled(asyncio.get_running_loop().run_in_executor(executor, work, *arguments))
