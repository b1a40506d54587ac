"""The HTTP server's manners, on raw sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mover.simulator import Options
from mover.simulator.steering import PATH
from tests.simulator_fixtures import SmallPool, small_pool

HEAD_LIMIT = 1024
BODY_LIMIT = 300 * 1024


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", Options(tls=False, head_timeout=0.3)) as pool:
        yield pool


def call(body: bytes, path: str = "/", version: str = "HTTP/1.1", more: str = "Connection: close\r\n") -> bytes:
    head = f"POST {path} {version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


XML = b'<?xml version="1.0"?><methodCall><methodName>system.listMethods</methodName><params/></methodCall>'


def padded(length: int) -> bytes:
    """A request whose head has exactly this many bytes."""
    start = f"POST / HTTP/1.1\r\nContent-Length: {len(XML)}\r\nConnection: close\r\nX: ".encode()
    return start + b"a" * (length - len(start) - 4) + b"\r\n\r\n"


async def test_a_head_of_1024_bytes_is_the_longest(pool: SmallPool) -> None:
    assert (await pool.http(padded(HEAD_LIMIT), upload=XML)).status == 200
    assert (await pool.http(padded(HEAD_LIMIT + 1), upload=XML)).status == 431


async def test_an_endless_head_is_refused_without_waiting_for_its_end(pool: SmallPool) -> None:
    assert (await pool.http(b"GET /" + b"a" * 2000)).status == 431


async def test_a_head_that_does_not_come_times_out(pool: SmallPool) -> None:
    assert (await pool.http(b"GET / HTTP/1.1\r\n")).status == 408


async def test_a_call_needs_a_length_of_at_most_300_kib(pool: SmallPool) -> None:
    largest = XML + b" " * (BODY_LIMIT - len(XML))
    assert (await pool.http(call(largest))).status == 200
    assert (await pool.http(call(largest + b" "))).status == 500
    without = await pool.http(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert without.status == 500
    assert without.header("content-type") == "text/html"
    assert b"<h1>HTTP 500 internal server error</h1>" in without.rest


@pytest.mark.parametrize(("path", "body"), [("/", b"<nonsense/>"), ("/jsonrpc", b"{}"), ("/jsonrpc", b'"\\ud800"')])
async def test_what_is_no_call_is_500(pool: SmallPool, path: str, body: bytes) -> None:
    reply = await pool.http(call(body, path))
    assert (reply.status, reply.header("content-type")) == (500, "text/html")


@pytest.mark.parametrize("path", ["/", "/RPC2", "/xmlrpc", "/anything/else"])
async def test_xml_is_answered_at_any_path(pool: SmallPool, path: str) -> None:
    reply = await pool.http(call(XML, path))
    assert (reply.status, reply.header("content-type")) == (200, "text/xml")
    assert reply.header("content-length") == str(len(reply.rest))
    assert b"<value>VM.snapshot</value>" in reply.rest
    assert b"Status" not in reply.rest


async def test_json_is_answered_at_its_path_only(pool: SmallPool) -> None:
    body = json.dumps({"method": "system.listMethods", "params": [], "id": "x"}).encode()
    reply = await pool.http(call(body, "/jsonrpc"))
    assert reply.header("content-type") == "application/json"
    methods = json.loads(reply.rest)["result"]
    assert {"VM.snapshot", "VDI.get_nbd_info", "SM.get_all_records", "VM.snapshot_with_quiesce"} <= set(methods)
    assert not {"Async.VM.snapshot", "VM_snapshot", "VTPM.get_contents"} & set(methods)


async def test_unknown_paths_and_verbs(pool: SmallPool) -> None:
    assert (await pool.http(b"PUT /nothing HTTP/1.1\r\n\r\n")).status == 403
    assert (await pool.http(b"DELETE / HTTP/1.1\r\n\r\n")).status == 501
    assert (await pool.http(b"GET /nothing HTTP/1.1\r\n\r\n")).status == 404
    assert (await pool.http(b"nonsense\r\n\r\n")).status == 400
    options = await pool.http(b"OPTIONS / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert (options.status, options.header("access-control-allow-origin")) == (200, "*")


async def test_a_connection_is_kept_for_http_1_1_and_closed_for_1_0(pool: SmallPool) -> None:
    twice = await pool.http(call(XML, more="") + call(XML))
    assert twice.header("connection") == "keep-alive"
    assert twice.rest.count(b"HTTP/1.1 200 OK") == 1
    old = await pool.http(call(XML, version="HTTP/1.0", more=""))
    assert old.head.startswith("HTTP/1.0 200")
    assert old.header("connection") == "close"


async def test_expect_is_not_understood(pool: SmallPool) -> None:
    """No `100 Continue`: the answer comes once the body is there."""
    reply = await pool.http(call(XML, more="Expect: 100-continue\r\nConnection: close\r\n"))
    assert reply.status == 200


async def test_a_host_that_is_down_says_nothing(pool: SmallPool) -> None:
    pool.simulator.faults.arm_json('[{"type": "host_down", "host": 0}]')
    with pytest.raises((ConnectionError, IndexError)):
        await pool.http(call(XML))
    pool.simulator.faults.clear()
    assert (await pool.http(call(XML))).status == 200


async def test_steering_is_not_on_the_pools_port(pool: SmallPool) -> None:
    reply = await pool.http(call(b'{"op": "expire_sessions"}', PATH))
    assert reply.status == 500
    assert await pool.call("pool.get_all")


async def test_each_host_has_its_own_certificate(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=True)) as pool:
        seen = []
        for host in (0, 1):
            _, writer = await pool.connect(host)
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            seen.append(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b""))
            writer.close()
        assert seen == [host.certificate.pem.rstrip() + "\n" for host in pool.simulator.pool.hosts]
        assert seen[0] != seen[1]
        assert (await pool.http(call(XML))).status == 200


async def test_many_clients_are_served_while_one_waits_for_events(pool: SmallPool) -> None:
    async with asyncio.TaskGroup() as group:
        token = (await pool.call("event.from", ["pool"], "", 5.0))["token"]
        waiting = group.create_task(pool.call("event.from", ["pool"], token, 60.0))
        (master,) = await pool.call("pool.get_all")
        assert len(await pool.call("VM.get_all")) == 4
        await pool.call("pool.add_to_other_config", master, "barrier", "1")
        (event,) = (await waiting)["events"]
    assert (event["class"], event["operation"]) == ("pool", "mod")
    assert event["snapshot"]["other_config"]["barrier"] == "1"
