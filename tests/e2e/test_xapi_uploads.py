"""Uploads to data handlers on raw sockets, with the manners that real ones have."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from protocol.errors import TransferError, XapiError
from protocol.xapi import Transfers, Trust
from protocol.xapi.wire import END_OF_FRAMES, frame_head, framed_length
from tests.rawpool_fixtures import (
    Request,
    make_certificate,
    raw_pool,
)
from tests.transfer_fixtures import (
    DISK,
    FAILED,
    IMPORT,
    OK,
    abort,
    joined,
    members,
    pieces,
    pin,
    redirect_to,
)
from tests.transfer_fixtures import event_loop_policy as event_loop_policy

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")


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
        flowing, ended = asyncio.Event(), asyncio.Event()

        async def take(request: Request) -> None:
            await request.answer(OK)
            await request.reader.readexactly(1000)
            flowing.set()
            while await request.reader.read(1 << 20):
                pass
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR"])
            ended.set()

        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(1000)
            await asyncio.Event().wait()

        async def upload(transfers: Transfers) -> None:
            body = stuck()
            async with aclosing(body):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 30, body=body)

        server.handlers[IMPORT] = take
        async with joined(server) as (_, transfers):
            async with asyncio.TaskGroup() as group:
                running = group.create_task(upload(transfers))
                await flowing.wait()
                running.cancel()
            await ended.wait()


async def test_an_upload_that_does_not_move() -> None:
    tasks: list[str] = []
    async with raw_pool() as server:

        async def take(request: Request) -> None:
            tasks.append(request.query["task_id"])
            await request.answer(OK)
            await asyncio.Event().wait()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield DISK

        server.handlers[IMPORT] = take
        async with joined(server, inactivity=0.3) as (_, transfers):
            with pytest.raises(TransferError, match="nothing moved"):
                await transfers.import_vdi("OpaqueRef:v", format="raw", length=1 << 40, body=endless())
            await server.end_task(tasks[0], "failure", error=["VDI_IO_ERROR"])
