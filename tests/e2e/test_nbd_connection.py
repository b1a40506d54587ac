"""One NBD connection, against nbdkit and against servers with awkward manners."""

from __future__ import annotations

import asyncio

import pytest

from protocol.arena import Arena
from protocol.errors import NbdConnectError, NbdError, NbdRequestError, NbdTimeoutError
from protocol.nbd import Timeouts, connect
from tests.nbd_fakes import Manner, fake_server
from tests.nbd_fixtures import KiB, MiB, nbdkit, needs_nbdkit, nothing_left, pattern, plain

QUICK = Timeouts(connect=5, handshake=5, request=5)


@needs_nbdkit
async def test_reads_go_straight_into_the_slot() -> None:
    arena = Arena(2)
    with nbdkit("pattern", "16M") as port:
        async with nothing_left(arena), await connect(plain(port), QUICK) as connection, arena.slot() as slot:
            assert connection.size == 16 * MiB
            slot[:] = bytes([0xAA]) * len(slot)
            service = await connection.read_into(slot[4 * KiB : 68 * KiB], 12345 * 512)
            assert slot[4 * KiB : 68 * KiB].tobytes() == pattern(12345 * 512, 64 * KiB)
            assert slot[: 4 * KiB].tobytes() == bytes([0xAA]) * 4 * KiB
            assert slot[68 * KiB :].tobytes() == bytes([0xAA]) * (len(slot) - 68 * KiB)
            assert service > 0
            assert (connection.requests, connection.bytes_read, connection.in_flight) == (1, 64 * KiB, 0)


@needs_nbdkit
async def test_reads_in_flight_together_are_told_apart() -> None:
    buffers = [memoryview(bytearray(64 * KiB)) for _ in range(8)]
    with nbdkit("pattern", "16M") as port:
        async with await connect(plain(port), QUICK) as connection, asyncio.TaskGroup() as group:
            for i, buffer in enumerate(buffers):
                group.create_task(connection.read_into(buffer, i * MiB))
    assert [bytes(buffer) for buffer in buffers] == [pattern(i * MiB, 64 * KiB) for i in range(8)]


async def test_a_cancelled_read_never_touches_its_buffer_again() -> None:
    """A buffer outlives its command: the slot goes back only when nothing can write to it any more."""
    late = asyncio.Event()
    arena = Arena(1)
    async with fake_server(Manner(late=late)) as fake:
        connection = await connect(plain(fake.port), QUICK)

        async def read() -> None:
            async with arena.slot() as slot:
                await connection.read_into(slot[: 64 * KiB], 64 * KiB)

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            await fake.asked.wait()
            reading.cancel()
        assert connection.closed
        async with arena.slot() as slot:  # it is free: whoever has it now must find it quiet
            slot[:] = bytes(len(slot))
            late.set()
            # The answer goes out now. Another connection's answer, sent after it, shows that its time has passed.
            async with await connect(plain(fake.port), QUICK) as other:
                await other.read_into(memoryview(bytearray(512)), 0)
            assert not any(slot)


async def test_no_answer_in_time_closes_the_connection() -> None:
    async with fake_server(Manner(stall_after=1)) as fake:
        connection = await connect(plain(fake.port), Timeouts(request=0.2))
        buffer = memoryview(bytearray(512))
        await connection.read_into(buffer, 0)
        with pytest.raises(NbdTimeoutError, match=f"127.0.0.1:{fake.port}: no answer to a read at byte 1024"):
            await connection.read_into(buffer, 1024)
        assert connection.closed
        with pytest.raises(NbdTimeoutError):
            await connection.read_into(buffer, 0)


async def test_a_silent_close_fails_what_is_in_flight() -> None:
    async with fake_server(Manner(close_after=1)) as fake, await connect(plain(fake.port), QUICK) as connection:
        buffer = memoryview(bytearray(512))
        await connection.read_into(buffer, 0)
        with pytest.raises(NbdError):
            await connection.read_into(buffer, 0)
        assert connection.closed


async def test_an_error_reply_names_the_errno() -> None:
    async with fake_server(Manner(error_after=0)) as fake, await connect(plain(fake.port), QUICK) as connection:
        with pytest.raises(NbdRequestError, match="error 5 reading 512 bytes at byte 4096") as caught:
            await connection.read_into(memoryview(bytearray(512)), 4096)
        assert caught.value.errno == 5


@needs_nbdkit
async def test_reading_past_the_end_is_refused_and_leaves_the_connection_usable() -> None:
    with nbdkit("pattern", "1M") as port:
        async with await connect(plain(port), QUICK) as connection:
            buffer = memoryview(bytearray(512))
            with pytest.raises(NbdRequestError):
                await connection.read_into(buffer, 1 * MiB)
            await connection.read_into(buffer, 0)
            assert bytes(buffer) == pattern(0, 512)


async def test_a_server_that_knows_only_export_name_is_enough() -> None:
    async with fake_server() as fake:
        async with await connect(plain(fake.port, export="/disk?session_id=OpaqueRef:1"), QUICK) as connection:
            assert connection.size == fake.size
        assert fake.exports == ["/disk?session_id=OpaqueRef:1"]
        assert 8 not in fake.options  # structured replies are not even asked for


async def test_a_server_that_hangs_up_at_once_is_a_connect_error() -> None:
    async with fake_server(Manner(refuse=True)) as fake:
        with pytest.raises(NbdConnectError):
            await connect(plain(fake.port), QUICK)


async def test_nobody_listening_is_a_connect_error() -> None:
    async with fake_server() as fake:
        port = fake.port
    with pytest.raises(NbdConnectError, match="Connection refused"):
        await connect(plain(port), QUICK)


@needs_nbdkit
async def test_the_export_name_is_in_no_message() -> None:
    secret = "/3b0c?session_id=OpaqueRef:9f4a-11"
    arguments = ("--filter=exportname", "pattern", "1M", "exportname=other", "exportname-strict=true")
    with nbdkit(*arguments) as port, pytest.raises(NbdConnectError) as caught:
        await connect(plain(port, export=secret), QUICK)
    assert "OpaqueRef" not in str(caught.value) and "3b0c" not in str(caught.value)


@needs_nbdkit
async def test_a_cancelled_handshake_leaves_nothing() -> None:
    with nbdkit("--filter=delay", "pattern", "1M", "delay-open=60") as port:
        async with nothing_left():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await connect(plain(port), QUICK)
            with pytest.raises(NbdConnectError, match="no answer to the handshake"):
                await connect(plain(port), Timeouts(handshake=0.2))
