"""Downloads from data handlers on raw sockets, with the manners that real ones have."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from protocol.errors import TransferError, XapiError
from protocol.xapi import Trust, open_transfers
from protocol.xapi.body import _TakenOver
from tests.rawpool_fixtures import (
    Request,
    make_certificate,
    raw_pool,
)
from tests.transfer_fixtures import (
    DISK,
    EXPORT,
    FAILED,
    OK,
    abort,
    joined,
    pin,
    read_all,
)
from tests.transfer_fixtures import event_loop_policy as event_loop_policy

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_raw_export(tmp_path: Path, tls: bool) -> None:
    certificate = make_certificate(tmp_path, "host") if tls else None
    seen: list[Request] = []
    async with raw_pool(certificate) as server:

        async def export(request: Request) -> None:
            seen.append(request)
            await request.answer(OK + DISK)
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        trust = Trust.pinned(pin(certificate)) if certificate else None
        async with joined(server, trust) as (pool, transfers):
            assert await read_all(transfers) == DISK
            (request,) = seen
            assert request.query["session_id"] == pool.session_ref.reveal()
            assert request.query["vdi"] == "OpaqueRef:v"
            assert request.query["format"] == "raw"
            assert request.head_length <= 1024


async def test_reading_in_pieces_and_a_base() -> None:
    seen: list[Request] = []
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            seen.append(request)
            await request.answer(OK + DISK)
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            data = bytearray()
            async with transfers.export_vdi("OpaqueRef:v", format="vhd", base="OpaqueRef:b") as stream:
                while piece := await stream.read(777):
                    assert len(piece) <= 777
                    data += piece
                await stream.finish()
                assert stream.received == len(DISK)
            assert data == DISK
            assert seen[0].query["base"] == "OpaqueRef:b"


async def test_the_size_of_a_raw_disk_is_asked_for() -> None:
    async with raw_pool() as server:
        server.methods["VDI.get_virtual_size"] = lambda vdi: str(len(DISK) + 512)

        async def export(request: Request) -> None:
            await request.answer(OK + DISK)
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(TransferError, match="ended after"):
                async with transfers.export_vdi("OpaqueRef:v", format="raw") as stream:
                    view = memoryview(bytearray(len(DISK) + 512))
                    assert await stream.readinto(view) == len(DISK)
                    await stream.finish()


async def test_success_is_what_the_task_says_not_the_200() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK + DISK)
            request.writer.close()
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR", "Device I/O errors"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(XapiError) as caught:
                await read_all(transfers)
            assert caught.value.code == "VDI_IO_ERROR"


@pytest.mark.parametrize("good", [b"", DISK], ids=["at the start", "after good data"])
@pytest.mark.parametrize("format", ["raw", "vhd"])
@pytest.mark.parametrize("task", ["fails", "is dropped"])
async def test_a_response_inside_the_body_is_an_error(good: bytes, format: str, task: str) -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK + good)
            await request.answer(FAILED)
            if task == "fails":
                code = ["SR_BACKEND_FAILURE_46", "", "The VDI is not available [opterr=VDI not detached cleanly]", ""]
                await server.end_task(request.query["task_id"], "failure", error=code)
            else:
                await server.drop_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(XapiError) as caught:
                async with transfers.export_vdi("OpaqueRef:v", format=format, length=len(DISK)) as stream:  # type: ignore[arg-type]
                    await stream.readinto(memoryview(bytearray(len(DISK))))
                    await stream.finish()
            assert caught.value.code == "SR_BACKEND_FAILURE_46"
            assert caught.value.params == ("", "The VDI is not available [opterr=VDI not detached cleanly]", "")


async def test_a_disk_may_begin_like_a_response() -> None:
    disk = b"HTTP/1.1 200 OK\r\n\r\n" + DISK
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK + disk[:3])
            await request.answer(disk[3:])
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            assert await read_all(transfers, len(disk)) == disk


async def test_bytes_after_the_end() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK + DISK + b"more")
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(TransferError, match="more bytes"):
                await read_all(transfers)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_cut_in_the_middle(tmp_path: Path, reset: bool, tls: bool) -> None:
    certificate = make_certificate(tmp_path, "host") if tls else None
    async with raw_pool(certificate) as server:

        async def export(request: Request) -> None:
            await request.answer(OK + DISK[:1000])
            if reset:
                abort(request.writer)
            request.writer.transport.abort()
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR", "Device I/O errors"])

        server.handlers[EXPORT] = export
        async with joined(server, Trust.pinned(pin(certificate)) if certificate else None) as (_, transfers):
            with pytest.raises(XapiError, match="VDI_IO_ERROR"):
                async with transfers.export_vdi("OpaqueRef:v", format="raw", length=len(DISK)) as stream:
                    await stream.readinto(memoryview(bytearray(len(DISK))))
                    await stream.finish()


async def test_a_task_that_fails_stops_a_stalled_download_at_once() -> None:
    async with raw_pool() as server:
        stalled = asyncio.Event()
        tasks: list[str] = []

        async def export(request: Request) -> None:
            tasks.append(request.query["task_id"])
            await request.answer(OK + DISK[:1000])
            stalled.set()
            await request.reader.read()

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):

            async def download() -> str:
                with pytest.raises(XapiError) as caught:
                    await read_all(transfers)
                return caught.value.code

            async with asyncio.TaskGroup() as group:
                running = group.create_task(download())
                await stalled.wait()
                await server.end_task(tasks[0], "failure", error=["SR_BACKEND_FAILURE_202", "iSCSI"])
            assert running.result() == "SR_BACKEND_FAILURE_202"


@pytest.mark.parametrize("tls", [False, True])
async def test_who_gave_up_reading_is_not_written_to(tmp_path: Path, tls: bool) -> None:
    """The buffer goes to somebody else then."""
    certificate = make_certificate(tmp_path, "host") if tls else None
    async with raw_pool(certificate) as server:
        go_on, sent = asyncio.Event(), asyncio.Event()

        async def export(request: Request) -> None:
            await request.answer(OK + DISK[:1000])
            await go_on.wait()
            await request.answer(DISK[1000:300_000])
            sent.set()
            with suppress(ConnectionError):
                await request.reader.read()
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR", "Device I/O errors"])

        server.handlers[EXPORT] = export
        trust = Trust.pinned(pin(certificate)) if certificate else None
        async with (
            joined(server, trust) as (_, transfers),
            transfers.export_vdi("OpaqueRef:v", format="raw", length=len(DISK)) as stream,
        ):
            assert await stream.readinto(memoryview(bytearray(1000))) == 1000
            slot = memoryview(bytearray(200_000))

            async def give_up() -> None:
                reading.cancel()

            async with asyncio.TaskGroup() as group:
                # The first of the two runs first, until it waits for bytes.
                reading = group.create_task(stream.readinto(slot))
                group.create_task(give_up())
            assert reading.cancelled()
            slot[:] = b"somebody" * 25_000
            go_on.set()
            await sent.wait()
            other = memoryview(bytearray(100_000))
            assert await stream.readinto(other) == len(other)
            assert slot == b"somebody" * 25_000
            assert bytes(other) in DISK, "what came while nobody read is not lost"


async def test_silence_ends_a_download() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK + DISK[:1000])
            await request.reader.read()
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR"])

        server.handlers[EXPORT] = export
        async with joined(server, inactivity=0.2) as (_, transfers):
            with pytest.raises((TransferError, XapiError)):
                async with asyncio.timeout(60):
                    # The connection stays open until we leave, so the reason can only be ours.
                    await read_all(transfers)


async def test_a_slow_download_is_no_silent_one() -> None:
    """Each pause is shorter than the silence that is put up with, all of them together are longer."""
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(OK)
            for start in range(0, len(DISK), len(DISK) // 8):
                await request.answer(DISK[start : start + len(DISK) // 8])
                await asyncio.sleep(0.1)
            await server.end_task(request.query["task_id"])
            request.writer.close()

        server.handlers[EXPORT] = export
        async with joined(server, inactivity=0.5) as (_, transfers):
            assert await read_all(transfers) == DISK


async def test_bytes_that_are_always_there_let_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor could the reader be cancelled otherwise: what is there is taken without waiting for anything."""
    monkeypatch.setattr("protocol.xapi.body._AT_ONCE", 4000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            transport, former = await asyncio.get_running_loop().create_connection(Former, sock=ours)
            transport.pause_reading()
            body = _TakenOver(transport, b"", 20.0, ended=False)
            transport.set_protocol(body)
            theirs.sendall(DISK[:20_000])
            received = bytearray(20_000)
            async with asyncio.TaskGroup() as group:
                other = group.create_task(others())
                for start in range(0, 20_000, 1000):
                    assert await body.receive(memoryview(received)[start : start + 1000], 1000) == 1000
                other.cancel()
            transport.close()
            await former.closed.wait()
    assert bytes(received) == DISK[:20_000] and turns >= 3


class Former(asyncio.Protocol):
    """Who had the connection before it was taken over: learns that it is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


@pytest.mark.parametrize("early", [False, True])
async def test_a_download_leaves_no_file_open(early: bool) -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            with suppress(ConnectionError):
                await request.answer(OK + DISK)
                await server.end_task(request.query["task_id"])
                request.writer.close()

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            await read_all(transfers)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                async with transfers.export_vdi("OpaqueRef:v", format="raw", length=len(DISK)) as stream:
                    assert await stream.read(1000)
                    if not early:
                        while await stream.read(1 << 20):
                            pass
                        await stream.finish()
            async with asyncio.timeout(20):
                while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 - nobody tells when a file is closed
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("tls", [False, True])
async def test_hanging_up_early_is_no_error(tmp_path: Path, tls: bool) -> None:
    hung_up = asyncio.Event()
    certificate = make_certificate(tmp_path, "host") if tls else None
    async with raw_pool(certificate) as server:

        async def export(request: Request) -> None:
            with suppress(ConnectionError, ssl.SSLError):
                await request.answer(OK)
                while True:
                    await request.answer(DISK)
            hung_up.set()
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR", "Device I/O errors"])

        server.handlers[EXPORT] = export
        async with joined(server, Trust.pinned(pin(certificate)) if certificate else None) as (_, transfers):
            async with transfers.export_vdi("OpaqueRef:v", format="vhd") as stream:
                assert await stream.read(512) == DISK[:512]
                await stream.abandon()
                assert hung_up.is_set()
            async with transfers.export_vdi("OpaqueRef:v", format="vhd") as stream:
                await stream.read(512)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_refusal_before_the_body(status: int) -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            page = b"<html><h1> Additional information </h1>VDI_INCOMPATIBLE_TYPE: [ OpaqueRef:v; cbt_metadata ]</html>"
            await request.answer(b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n" % (status, len(page)) + page)

        server.handlers[EXPORT] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(XapiError) as caught:
                await read_all(transfers)
            assert caught.value.code == "VDI_INCOMPATIBLE_TYPE"
            assert caught.value.params == ("OpaqueRef:v", "cbt_metadata")


async def test_a_refusal_without_a_reason_does_not_show_the_session() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\n")

        server.handlers[EXPORT] = export
        async with joined(server) as (pool, transfers):
            with pytest.raises(TransferError) as caught:
                await read_all(transfers)
            assert caught.value.status == 403
            assert pool.session_ref.reveal() not in repr(caught.value) + str(caught.value)


async def test_an_expired_session_is_renewed_before_the_download() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            if request.query["session_id"] not in server.sessions:
                await request.answer(b"HTTP/1.1 401 Unauthorised\r\nconnection: close\r\n\r\n")
                return
            await request.answer(OK + DISK)
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with joined(server) as (pool, transfers):

            async def expire(label: str, description: str) -> str:
                ref = await server.make_task()
                server.sessions.discard(pool.session_ref.reveal())
                return ref

            server.methods["task.create"] = expire
            assert await read_all(transfers) == DISK


async def test_metadata_comes_with_a_length() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DISK) + DISK)
            await server.end_task(request.query["task_id"])

        server.handlers["/export_metadata"] = export
        async with joined(server) as (_, transfers):
            assert await transfers.export_metadata("OpaqueRef:vm") == DISK


async def test_metadata_shorter_than_its_length() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(DISK) + 1) + DISK)
            request.writer.close()
            await server.end_task(request.query["task_id"], "failure", error=["INTERNAL_ERROR", "x"])

        server.handlers["/export_metadata"] = export
        async with joined(server) as (_, transfers):
            with pytest.raises(XapiError, match="INTERNAL_ERROR"):
                await transfers.export_metadata("OpaqueRef:vm")


async def test_a_piece_of_a_chunked_body_whose_end_comes_later() -> None:
    """A proxy makes such bodies: that a piece is over, once it was read, is not the end of all of them."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [DISK[:1000], DISK[1000:5000], DISK[5000:]]
    async with raw_pool() as server:
        was_read = asyncio.Semaphore(0)

        async def export(request: Request) -> None:
            await request.answer(head)
            for part in parts:
                await request.answer(b"%x\r\n" % len(part) + part)
                await was_read.acquire()
                await request.answer(b"\r\n")
            await request.answer(b"0\r\n\r\n")
            await server.end_task(request.query["task_id"])

        server.handlers[EXPORT] = export
        async with (
            joined(server) as (_, transfers),
            transfers.export_vdi("OpaqueRef:v", format="raw", length=len(DISK)) as stream,
        ):
            for part in parts:
                view = memoryview(bytearray(len(part)))
                assert await stream.readinto(view) == len(part)
                assert view == part
                was_read.release()
            assert await stream.read(1) == b""
            await stream.finish()


def test_hosts_may_be_silent_for_half_an_hour() -> None:
    """They attach disks and compress zeros without a word; that nothing comes any more, the task tells."""
    assert inspect.signature(open_transfers).parameters["inactivity"].default >= 30 * 60
