"""Connections that calls share, and what becomes of a call that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from protocol.errors import PoolUnreachableError
from protocol.xapi.address import Address
from protocol.xapi.channel import Channel
from protocol.xapi.channels import _AT_ONCE, Channels
from protocol.xapi.trust import Trust
from tests.rawpool_fixtures import RawPool, raw_pool

SESSION = "OpaqueRef:session"


@asynccontextmanager
async def channels_to(server: RawPool) -> AsyncIterator[Channels]:
    server.sessions.add(SESSION)
    server.methods |= {"VM.destroy": lambda vm: "", "VM.get_all": list}
    channels = Channels(Address.parse(server.url), Trust.system(), 5.0)
    try:
        yield channels
    finally:
        channels.close()


async def call(channels: Channels, method: str, *args: str, landed: list[Any] | None = None) -> Any:
    async with channels.one() as channel:
        return await channels.in_thread(channel, partial(channel.call, method, (SESSION, *args), 5.0), 5.0, landed)


@asynccontextmanager
async def no_thread_free(channels: Channels) -> AsyncIterator[list[threading.Event]]:
    """Calls that were given up hold all threads, as those do that are still connecting; each event lets one go."""
    let_go = [threading.Event() for _ in range(_AT_ONCE)]

    async def held(event: threading.Event) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            loop.call_soon_threadsafe(begun.set)
            event.wait()

        async def work() -> None:
            async with channels.one() as channel:
                await channels.in_thread(channel, hold, 5.0)

        await cancelled(work(), begun)

    try:
        for event in let_go:
            await held(event)
        yield let_go
    finally:
        for event in let_go:
            event.set()


async def cancelled(work: Coroutine[Any, Any, Any], begun: asyncio.Event | None = None) -> None:
    """Begin `work`, and cancel it once it has `begun`, or once it has come as far as it can."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        if begun is None:
            await asyncio.sleep(0.05)
        else:
            await begun.wait()
        task.cancel()
    assert task.cancelled()


@pytest.mark.parametrize("landing", [False, True])
async def test_a_call_that_was_cancelled_before_it_had_a_thread_is_never_sent(landing: bool) -> None:
    async with raw_pool() as server, channels_to(server) as channels, no_thread_free(channels) as let_go:
        landed: list[Any] | None = [] if landing else None
        async with asyncio.timeout(3):
            await cancelled(call(channels, "VM.destroy", "OpaqueRef:vm", landed=landed))
        let_go[0].set()
        # The one thread that is free takes calls in the order in which they were made.
        assert await call(channels, "VM.get_all") == []
        assert server.calls == ["VM.get_all"]


async def test_a_call_that_had_no_thread_in_time_is_never_sent() -> None:
    async with raw_pool() as server, channels_to(server) as channels, no_thread_free(channels) as let_go:
        async with channels.one() as channel:
            channels.connect_timeout = 0.0
            work = partial(channel.call, "VM.destroy", (SESSION, "OpaqueRef:vm"), 5.0)
            with pytest.raises(PoolUnreachableError, match="in time"):
                await channels.in_thread(channel, work, 0.05)
        channels.connect_timeout = 5.0
        let_go[0].set()
        assert await call(channels, "VM.get_all") == []
        assert server.calls == ["VM.get_all"]


async def test_a_call_that_was_cancelled_as_its_thread_began_is_not_sent() -> None:
    begun, go_on, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def late(channel: Channel) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        try:
            channel.call("VM.destroy", (SESSION, "OpaqueRef:vm"), 5.0)
        finally:
            loop.call_soon_threadsafe(ended.set)

    async def destroy(channels: Channels) -> None:
        async with channels.one() as channel:
            await channels.in_thread(channel, partial(late, channel), 5.0)

    async with raw_pool() as server, channels_to(server) as channels:
        await cancelled(destroy(channels), begun)
        go_on.set()
        await ended.wait()
        assert server.calls == []


async def test_a_cancelled_call_gives_its_place_back_once() -> None:
    async with raw_pool() as server, channels_to(server) as channels:
        async with no_thread_free(channels):
            for _ in range(2 * _AT_ONCE):
                await cancelled(call(channels, "VM.destroy", "OpaqueRef:vm"))
        async with asyncio.TaskGroup() as group:
            async with AsyncExitStack() as stack:
                for _ in range(_AT_ONCE):
                    async with asyncio.timeout(5):
                        await stack.enter_async_context(channels.one())
                one_more = group.create_task(call(channels, "VM.get_all"))
                await asyncio.sleep(0.1)
                assert server.calls == []
            assert await one_more == []
        assert len({id(channel) for channel in channels._idle}) == len(channels._idle) <= _AT_ONCE
