"""One NBD connection, against nbdkit and against servers with awkward manners."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocol.arena import Arena
from protocol.errors import NbdConnectError, NbdError, NbdRequestError, NbdTimeoutError
from protocol.nbd import Timeouts
from protocol.nbd.connection import Service
from protocol.tasks import in_thread
from tests.nbd_fakes import Manner, fake_server
from tests.nbd_fixtures import (
    KiB,
    MiB,
    connected,
    nbdkit,
    needs_nbdkit,
    nothing_left,
    pattern,
    plain,
    refused,
    secured,
    self_signed,
)

QUICK = Timeouts(connect=5, handshake=5, request=5)


@needs_nbdkit
async def test_reads_go_straight_into_the_slot() -> None:
    arena = Arena(2)
    with nbdkit("pattern", "16M") as port:
        async with nothing_left(arena), connected(plain(port)) as client, arena.slot() as slot:
            assert client.connection.size == 16 * MiB
            slot[:] = bytes([0xAA]) * len(slot)
            await client.read(slot[4 * KiB : 68 * KiB], 12345 * 512)
            assert slot[4 * KiB : 68 * KiB].tobytes() == pattern(12345 * 512, 64 * KiB)
            assert slot[: 4 * KiB].tobytes() == bytes([0xAA]) * 4 * KiB
            assert slot[68 * KiB :].tobytes() == bytes([0xAA]) * (len(slot) - 68 * KiB)
            assert client.connection.in_flight == 0


@needs_nbdkit
async def test_reads_in_flight_together_are_told_apart() -> None:
    buffers = [memoryview(bytearray(64 * KiB)) for _ in range(8)]
    with nbdkit("pattern", "16M") as port:
        async with connected(plain(port)) as client:
            connection = client.connection
            reads = [connection.submit(buffer, number * MiB) for number, buffer in enumerate(buffers)]
            assert connection.in_flight == 8
            for read in reversed(reads):
                await in_thread(client.thread, connection.wait, read)
    assert [bytes(buffer) for buffer in buffers] == [pattern(i * MiB, 64 * KiB) for i in range(8)]


@needs_nbdkit
async def test_the_service_time_is_exact_where_it_is_known() -> None:
    """From when the server could begin until the answer came; what came while nobody looked took no longer."""
    buffers = [memoryview(bytearray(512)) for _ in range(5)]
    slow = ("--filter=noparallel", "--filter=delay", "pattern", "1M", "rdelay=60ms", "serialize=requests")
    with nbdkit(*slow) as port:
        async with connected(plain(port)) as client:
            connection = client.connection

            def measure() -> list[Service]:
                first, second = (connection.submit(buffer, 0) for buffer in buffers[:2])
                found = [connection.wait(first), connection.wait(second)]
                # Two that are answered by the time the first of them is looked at, and one after those.
                third, fourth = (connection.submit(buffer, 0) for buffer in buffers[2:4])
                while third.errno is None or fourth.errno is None:
                    connection._wire.advance(1.0)
                found += [connection.wait(third), connection.wait(fourth)]
                return [*found, connection.wait(connection.submit(buffers[4], 0))]

            found = await in_thread(client.thread, measure)
    assert [service.exact for service in found] == [True, True, False, False, True]
    assert all(service.seconds >= 0.05 for service in found), found


async def test_a_cancelled_read_never_touches_its_buffer_again() -> None:
    """A buffer outlives its command: the slot goes back only when nothing can write to it any more."""
    late = asyncio.Event()
    arena = Arena(1)
    async with fake_server(Manner(late=late)) as fake, connected(plain(fake.port)) as client:

        async def read() -> None:
            async with arena.slot() as slot:
                await client.read(slot[: 64 * KiB], 64 * KiB)

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            await fake.asked.wait()
            reading.cancel()
        assert client.connection.closed
        async with arena.slot() as slot:  # it is free: whoever has it now must find it quiet
            slot[:] = bytes(len(slot))
            late.set()
            # The answer goes out now. Another connection's answer, sent after it, shows that its time has passed.
            async with connected(plain(fake.port)) as other:
                await other.read(memoryview(bytearray(512)), 0)
            assert not any(slot)


async def test_no_answer_in_time_closes_the_connection() -> None:
    async with (
        fake_server(Manner(stall_after=1)) as fake,
        connected(plain(fake.port), Timeouts(request=0.2)) as client,
    ):
        buffer = memoryview(bytearray(512))
        await client.read(buffer, 0)
        with pytest.raises(NbdTimeoutError, match=f"127.0.0.1:{fake.port}: no answer to a read at byte 1024"):
            await client.read(buffer, 1024)
        assert client.connection.closed
        with pytest.raises(NbdTimeoutError):
            await client.read(buffer, 0)


async def test_a_silent_close_fails_what_is_in_flight() -> None:
    async with fake_server(Manner(close_after=1)) as fake, connected(plain(fake.port)) as client:
        buffer = memoryview(bytearray(512))
        await client.read(buffer, 0)
        with pytest.raises(NbdError):
            await client.read(buffer, 0)
        assert client.connection.closed


async def test_an_error_reply_names_the_errno() -> None:
    async with fake_server(Manner(error_after=0)) as fake, connected(plain(fake.port)) as client:
        with pytest.raises(NbdRequestError, match="error 5 reading 512 bytes at byte 4096") as caught:
            await client.read(memoryview(bytearray(512)), 4096)
        assert caught.value.errno == 5


@needs_nbdkit
@pytest.mark.parametrize("secure", [False, True])
async def test_reading_past_the_end_is_refused_and_leaves_the_connection_usable(tmp_path: Path, secure: bool) -> None:
    pem = self_signed(tmp_path)
    tls = ("--tls=require", f"--tls-certificates={tmp_path}") if secure else ()
    with nbdkit(*tls, "pattern", "1M") as port:
        async with connected(secured(port, pem) if secure else plain(port)) as client:
            buffer = memoryview(bytearray(512))
            with pytest.raises(NbdRequestError):
                await client.read(buffer, 1 * MiB)
            await client.read(buffer, 0)
            assert bytes(buffer) == pattern(0, 512)


async def test_a_server_that_knows_only_export_name_is_enough() -> None:
    async with fake_server() as fake:
        async with connected(plain(fake.port, export="/disk?session_id=OpaqueRef:1")) as client:
            assert client.connection.size == fake.size
        assert fake.exports == ["/disk?session_id=OpaqueRef:1"]
        assert 8 not in fake.options  # structured replies are not even asked for


async def test_a_server_that_hangs_up_at_once_is_a_connect_error() -> None:
    async with fake_server(Manner(refuse=True)) as fake:
        with pytest.raises(NbdConnectError):
            await refused(plain(fake.port))


async def test_nobody_listening_is_a_connect_error() -> None:
    async with fake_server() as fake:
        port = fake.port
    with pytest.raises(NbdConnectError, match="Connection refused"):
        await refused(plain(port))


@needs_nbdkit
async def test_the_export_name_is_in_no_message() -> None:
    secret = "/3b0c?session_id=OpaqueRef:9f4a-11"
    arguments = ("--filter=exportname", "pattern", "1M", "exportname=other", "exportname-strict=true")
    with nbdkit(*arguments) as port, pytest.raises(NbdConnectError) as caught:
        await refused(plain(port, export=secret))
    assert "OpaqueRef" not in str(caught.value) and "3b0c" not in str(caught.value)


@needs_nbdkit
async def test_a_cancelled_handshake_leaves_nothing() -> None:
    with nbdkit("--filter=delay", "pattern", "1M", "delay-open=60") as port:
        async with nothing_left():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await refused(plain(port))
            with pytest.raises(NbdConnectError, match="no answer to the handshake"):
                await refused(plain(port), Timeouts(handshake=0.2))
