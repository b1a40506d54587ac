"""Pools on raw sockets whose data handlers are made for a test, and joining them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from protocol.secret import Secret
from protocol.xapi import Patience, Pool, Transfers, Trust, connect, open_transfers
from protocol.xapi.trust import fingerprint, format_fingerprint
from tests.rawpool_fixtures import (
    PASSWORD,
    USER,
    Certificate,
    RawPool,
    host_record,
)

EXPORT, IMPORT = "/export_raw_vdi", "/import_raw_vdi"


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


FAILED = (
    b"HTTP/1.1 500 Internal Error\r\ncontent-length: 120\r\nconnection:close\r\n\r\n<html><body><h1>HTTP 500 internal "
    b"server error</h1><h1> Additional information </h1>SR_BACKEND_FAILURE_46: [ ; The VDI is not available "
    b"[opterr=VDI not detached cleanly];  ]</body></html>"
)


DISK = bytes(range(256)) * 8192


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


def abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def members(master: RawPool, member: RawPool, *certificates: Certificate) -> None:
    master.hosts = {"OpaqueRef:one": host_record("127.0.0.1"), "OpaqueRef:two": host_record("127.0.0.2")}
    if certificates:
        pems = dict(zip(master.hosts, (certificate.pem for certificate in certificates), strict=True))
        master.methods["host.get_server_certificate"] = lambda ref: pems[ref]


def redirect_to(member: RawPool, scheme: str | None = None) -> bytes:
    target = f"{scheme or member.scheme}://{member.host}:{member.port}"
    return f"HTTP/1.1 302 Found\r\nLocation: {target}{EXPORT}?x=y\r\nConnection: close\r\n\r\n".encode()


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Both loops: they differ in how they tell of connections that end badly."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()
