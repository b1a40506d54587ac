"""Slots go round: to whoever asked first, task or thread, and none is ever lost."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from protocol.arena import Arena


def free(arena: Arena) -> int:
    slots = []
    while (slot := arena.spare()) is not None:
        slots.append(slot)
    for slot in slots:
        arena.release(slot)
    return len(slots)


async def test_who_asks_first_is_served_first_tasks_and_threads_alike() -> None:
    arena = Arena(1, 4096)
    held = await arena.acquire()
    thread = arena.request()
    task = asyncio.ensure_future(arena.acquire())  # noqa: TID251 - two who wait, without a group that owns them
    await asyncio.sleep(0)
    assert arena.exhausted and arena.spare() is None
    arena.release(held)
    assert thread.done() and not task.done()
    arena.release(thread.result())
    arena.release(await task)
    assert free(arena) == 1


async def test_a_request_that_is_withdrawn_gives_its_slot_back() -> None:
    arena = Arena(1, 4096)
    served, waiting = arena.request(), arena.request()
    arena.withdraw(waiting)
    assert waiting.cancelled()
    arena.withdraw(served)
    assert free(arena) == 1


async def test_a_task_that_is_cancelled_while_its_slot_is_on_the_way_gives_it_back() -> None:
    arena = Arena(1, 4096)
    held = await arena.acquire()
    task = asyncio.ensure_future(arena.acquire())  # noqa: TID251 - cancelled before it hears of its slot
    await asyncio.sleep(0)
    arena.release(held)  # the slot is the task's now, which the loop has not told it yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert free(arena) == 1


def test_many_threads_share_a_few_slots_and_never_one_at_once() -> None:
    arena = Arena(2, 4096)

    def fill(number: int) -> bool:
        quiet = True
        for _ in range(200):
            slot = arena.request().result()
            slot[:8] = mark = number.to_bytes(8, "big")
            quiet = quiet and slot[:8] == mark
            arena.release(slot)
        return quiet

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(fill, range(6)))
    assert free(arena) == 2


def test_slots_are_whole_pages() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        Arena(1, 1000)
