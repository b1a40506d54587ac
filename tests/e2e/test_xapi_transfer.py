"""Bulk transfers against data handlers on raw sockets, with the manners that real ones have."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from protocol.errors import PoolCertificateError, PoolUnreachableError, TransferError, XapiError
from protocol.secret import Secret
from protocol.xapi import Patience, Pool, Transfers, Trust, connect, open_transfers
from protocol.xapi.trust import fingerprint, format_fingerprint
from protocol.xapi.wire import END_OF_FRAMES, frame_head, framed_length
from tests.rawpool_fixtures import (
    PASSWORD,
    USER,
    Certificate,
    RawPool,
    Request,
    host_record,
    make_certificate,
    raw_pool,
)

EXPORT, IMPORT = "/export_raw_vdi", "/import_raw_vdi"
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
FAILED = (
    b"HTTP/1.1 500 Internal Error\r\ncontent-length: 120\r\nconnection:close\r\n\r\n<html><body><h1>HTTP 500 internal "
    b"server error</h1><h1> Additional information </h1>SR_BACKEND_FAILURE_46: [ ; The VDI is not available "
    b"[opterr=VDI not detached cleanly];  ]</body></html>"
)
DISK = bytes(range(256)) * 8192
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")
QUICK = Patience(connect=5, call=5, task=20, attempts=3, first_wait=0.01, longest_wait=0.02)


@asynccontextmanager
async def joined(server: RawPool, trust: Trust | None = None, **keys: float) -> AsyncIterator[tuple[Pool, Transfers]]:
    async with (
        connect(server.url, USER, Secret(PASSWORD), trust or Trust.system(), patience=QUICK) as pool,
        open_transfers(pool, **keys) as transfers,
    ):
        yield pool, transfers
    assert server.sessions == set()
    assert not server.tasks, "a task was left behind"


async def read_all(transfers: Transfers, size: int = len(DISK), **keys: int) -> bytes:
    async with transfers.export_vdi("OpaqueRef:v", format="raw", length=size, **keys) as stream:
        view = memoryview(bytearray(size))
        assert await stream.readinto(view) == size
        await stream.finish()
    return bytes(view)


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[memoryview]:
    """One buffer, used again and again, as a slot of an arena is."""
    slot = bytearray(size)
    for start in range(0, len(data), size):
        part = data[start : start + size]
        slot[: len(part)] = part
        yield memoryview(slot)[: len(part)]


def pin(certificate: Certificate) -> str:
    return format_fingerprint(fingerprint(certificate.der))


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Both loops: they differ in how they tell of connections that end badly."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


# --- downloads


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


def abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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


# --- redirects


def members(master: RawPool, member: RawPool, *certificates: Certificate) -> None:
    master.hosts = {"OpaqueRef:one": host_record("127.0.0.1"), "OpaqueRef:two": host_record("127.0.0.2")}
    if certificates:
        pems = dict(zip(master.hosts, (certificate.pem for certificate in certificates), strict=True))
        master.methods["host.get_server_certificate"] = lambda ref: pems[ref]


def redirect_to(member: RawPool, scheme: str | None = None) -> bytes:
    target = f"{scheme or member.scheme}://{member.host}:{member.port}"
    return f"HTTP/1.1 302 Found\r\nLocation: {target}{EXPORT}?x=y\r\nConnection: close\r\n\r\n".encode()


async def test_a_redirect_is_followed_with_the_certificate_the_pool_names(tmp_path: Path) -> None:
    one, two = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "two")
    async with raw_pool(one) as master, raw_pool(two, host="127.0.0.2") as member:
        members(master, member, one, two)

        async def send_on(request: Request) -> None:
            await request.answer(redirect_to(member))

        async def export(request: Request) -> None:
            assert request.query["session_id"] in master.sessions
            await request.answer(OK + DISK)
            await master.end_task(request.query["task_id"])

        master.handlers[EXPORT], member.handlers[EXPORT] = send_on, export
        async with joined(master, Trust.pinned(pin(one))) as (_, transfers):
            assert await read_all(transfers) == DISK
            assert await read_all(transfers) == DISK
        assert master.calls.count("host.get_server_certificate") == 1


async def test_a_redirect_to_another_certificate_is_refused(tmp_path: Path) -> None:
    one, two, false = (make_certificate(tmp_path, name) for name in ("one", "two", "false"))
    asked: list[Request] = []
    async with raw_pool(one) as master, raw_pool(false, host="127.0.0.2") as member:
        members(master, member, one, two)

        async def send_on(request: Request) -> None:
            await request.answer(redirect_to(member))

        async def export(request: Request) -> None:
            asked.append(request)

        master.handlers[EXPORT], member.handlers[EXPORT] = send_on, export
        async with joined(master, Trust.pinned(pin(one))) as (_, transfers):
            with pytest.raises(PoolCertificateError) as caught:
                await read_all(transfers)
            assert pin(false) in str(caught.value)
    assert asked == []


@pytest.mark.parametrize(
    ("location", "error"),
    [
        (b"https://127.0.0.3/export_raw_vdi", PoolUnreachableError),
        (b"http://127.0.0.2/export_raw_vdi", TransferError),
        (b"ftp://127.0.0.2/", TransferError),
        (b"http://[/", TransferError),
        (b"", TransferError),
    ],
)
async def test_a_redirect_to_a_stranger_or_to_plain_text_is_refused(
    tmp_path: Path, location: bytes, error: type[Exception]
) -> None:
    one = make_certificate(tmp_path, "one")
    async with raw_pool(one) as master, raw_pool(host="127.0.0.2") as member:
        members(master, member)

        async def send_on(request: Request) -> None:
            await request.answer(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nConnection: close\r\n\r\n" % location)

        master.handlers[EXPORT] = send_on
        async with joined(master, Trust.pinned(pin(one))) as (_, transfers):
            with pytest.raises(error):
                await read_all(transfers)


async def test_a_wrong_certificate_of_the_host_itself(tmp_path: Path) -> None:
    """The API answers as pinned, but whoever takes the data connection does not."""
    one, false = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "false")
    async with raw_pool(one) as server, raw_pool(false, host="127.0.0.2") as impostor:
        members(server, impostor, one, one)
        asked: list[Request] = []

        async def take(request: Request) -> None:
            asked.append(request)

        async def send_on(request: Request) -> None:
            await request.answer(redirect_to(impostor))

        impostor.handlers[EXPORT], impostor.handlers[IMPORT] = take, take
        server.handlers[EXPORT], server.handlers[IMPORT] = send_on, send_on
        async with joined(server, Trust.pinned(pin(one))) as (_, transfers):
            with pytest.raises(PoolCertificateError):
                await read_all(transfers)
            with pytest.raises(PoolCertificateError):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=len(DISK), body=pieces(DISK))
        assert asked == []


async def test_redirects_in_a_circle() -> None:
    async with raw_pool() as server:

        async def send_on(request: Request) -> None:
            await request.answer(redirect_to(server))

        server.handlers[EXPORT] = send_on
        async with joined(server) as (_, transfers):
            with pytest.raises(TransferError, match="redirect"):
                await read_all(transfers)


# --- uploads


@pytest.mark.parametrize("tls", [False, True])
async def test_an_upload_goes_on_after_the_early_answer(tmp_path: Path, tls: bool) -> None:
    certificate = make_certificate(tmp_path, "host") if tls else None
    got: list[bytes] = []
    async with raw_pool(certificate) as server:

        async def take(request: Request) -> None:
            assert "transfer-encoding" not in request.headers
            await request.answer(OK)
            got.append(await request.body())
            await server.end_task(request.query["task_id"], result="<value>OpaqueRef:v</value>")

        server.handlers[IMPORT] = take
        async with joined(server, Trust.pinned(pin(certificate)) if certificate else None) as (_, transfers):
            data = os.urandom(8 << 20)
            body = pieces(data, 1 << 20)
            async with aclosing(body):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=len(data), body=body)
            assert got == [data]


async def test_framed_pieces() -> None:
    got: list[bytes] = []
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            assert request.query["chunked"] == "true"
            await request.answer(OK)
            got.append(await request.body())
            await server.end_task(request.query["task_id"])

        async def body() -> AsyncIterator[bytes]:
            yield frame_head(1 << 40, 5)
            yield b"hello"
            yield END_OF_FRAMES

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            await transfers.import_vdi(
                "OpaqueRef:v", format="raw", length=framed_length([5]), body=body(), chunked=True
            )
            with pytest.raises(ValueError, match="framed"):
                await transfers.import_vdi("OpaqueRef:v", format="vhd", length=1, body=body(), chunked=True)
    assert got == [struct.pack("<QI", 1 << 40, 5) + b"hello" + bytes(12)]


async def test_a_redirected_upload_sends_its_body_once() -> None:
    got: list[bytes] = []
    async with raw_pool() as master, raw_pool(host="127.0.0.2") as member:
        members(master, member)

        async def send_on(request: Request) -> None:
            await request.answer(redirect_to(member))
            got.append(await request.reader.read())

        async def take(request: Request) -> None:
            await request.answer(OK)
            got.append(await request.body())
            await master.end_task(request.query["task_id"])

        master.handlers[IMPORT], member.handlers[IMPORT] = send_on, take
        async with joined(master) as (_, transfers):
            await transfers.import_vdi("OpaqueRef:v", format="vhd", length=len(DISK), body=pieces(DISK))
    assert got == [b"", DISK]


async def test_a_refused_upload_takes_nothing_from_its_body() -> None:
    async with raw_pool() as server:

        async def refuse(request: Request) -> None:
            page = b"<h1> Additional information </h1>VDI_IN_USE: [ v; import ]"
            await request.answer(b"HTTP/1.1 500 No\r\nconnection: close\r\n\r\n" + page)

        taken: list[bool] = []

        async def body() -> AsyncIterator[bytes]:
            taken.append(True)
            yield DISK

        server.handlers[IMPORT] = refuse
        async with joined(server) as (_, transfers):
            with pytest.raises(XapiError, match="VDI_IN_USE"):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=len(DISK), body=body())
        assert taken == []


@pytest.mark.parametrize("manner", ["text", "close", "reset"])
async def test_an_upload_that_the_server_breaks_off(manner: str) -> None:
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            await request.answer(OK)
            await request.reader.readexactly(1000)
            if manner == "text":
                await request.answer(FAILED)
            elif manner == "reset":
                abort(request.writer)
            request.writer.close()
            error = ["SR_BACKEND_FAILURE_46", "", "full", ""]
            await server.end_task(request.query["task_id"], "failure", error=error)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield DISK

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            body = endless()
            async with aclosing(body):
                with pytest.raises(XapiError) as caught:
                    await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 40, body=body)
            assert caught.value.code == "SR_BACKEND_FAILURE_46"


async def test_a_task_that_fails_stops_an_upload_at_once() -> None:
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            await request.answer(OK)
            await request.reader.readexactly(1000)
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR", "Device I/O errors"])
            while await request.reader.read(1 << 20):
                pass

        async def endless() -> AsyncIterator[bytes]:
            yield bytes(1000)
            await asyncio.Event().wait()

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            body = endless()
            async with aclosing(body):
                with pytest.raises(XapiError, match="VDI_IO_ERROR"):
                    await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 40, body=body)


@pytest.mark.parametrize(("announced", "match"), [(len(DISK) + 1, "ended after"), (len(DISK) - 1, "more data")])
async def test_a_body_of_another_length_than_announced(announced: int, match: str) -> None:
    received: list[int] = []
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            await request.answer(OK)
            data = await request.reader.read(-1)
            received.append(len(data))
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR"])

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            with pytest.raises(TransferError, match=match):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=announced, body=pieces(DISK))


async def test_what_the_body_raises_comes_out() -> None:
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            await request.answer(OK)
            while await request.reader.read(1 << 20):
                pass
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR"])

        async def body() -> AsyncIterator[bytes]:
            yield DISK
            raise ZeroDivisionError("of the caller")

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            with pytest.raises(ZeroDivisionError):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 30, body=body())


async def test_a_cancelled_upload_leaves_its_body_alone() -> None:
    async with raw_pool() as server:
        flowing = asyncio.Event()

        async def take(request: Request) -> None:
            await request.answer(OK)
            await request.reader.readexactly(1000)
            flowing.set()
            while await request.reader.read(1 << 20):
                pass

        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(1000)
            await asyncio.Event().wait()

        async def upload(transfers: Transfers) -> None:
            body = stuck()
            async with aclosing(body):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 30, body=body)

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers), asyncio.TaskGroup() as group:
            running = group.create_task(upload(transfers))
            await flowing.wait()
            running.cancel()


async def test_an_upload_that_does_not_move() -> None:
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            await request.answer(OK)
            await asyncio.Event().wait()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield DISK

        server.handlers[IMPORT] = take
        async with joined(server, inactivity=0.3) as (_, transfers):
            with pytest.raises(TransferError, match="nothing moved"):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 40, body=endless())


# --- metadata


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


def test_hosts_may_be_silent_for_half_an_hour() -> None:
    """They attach disks and compress zeros without a word; that nothing comes any more, the task tells."""
    assert inspect.signature(open_transfers).parameters["inactivity"].default >= 30 * 60
