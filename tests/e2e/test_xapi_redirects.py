"""Transfers that another host of the pool is to serve, and the certificates it may show."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import PoolCertificateError, PoolUnreachableError, TransferError
from protocol.xapi import Trust
from tests.rawpool_fixtures import (
    Request,
    make_certificate,
    raw_pool,
)
from tests.transfer_fixtures import (
    DISK,
    EXPORT,
    IMPORT,
    OK,
    joined,
    members,
    pieces,
    pin,
    read_all,
    redirect_to,
)
from tests.transfer_fixtures import event_loop_policy as event_loop_policy

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")


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
