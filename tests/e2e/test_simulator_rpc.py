"""Calls as bytes: what goes over the wire in XML-RPC and JSON-RPC, seen by the standard library alone."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options
from mover.simulator.faults import CallFault
from tests.simulator_fixtures import MiB, SmallPool, in_thread, small_pool


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", Options(tls=False)) as pool:
        yield pool


def post(url: str, body: bytes) -> tuple[str, bytes]:
    """The content type and body of the answer."""
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        return response.headers["content-type"], response.read()


async def json_call(pool: SmallPool, call: dict[str, Any]) -> Any:
    kind, body = await in_thread(post, f"{pool.simulator.url}/jsonrpc", json.dumps(call).encode())
    assert kind == "application/json"
    return json.loads(body)


async def xml_call(pool: SmallPool, method: str, *params: str, path: str = "/") -> tuple[bytes, ElementTree.Element]:
    """The answer as bytes, and its one parameter's value."""
    values = "".join(f"<param><value>{param}</value></param>" for param in params)
    call = f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>"
    kind, body = await in_thread(post, pool.simulator.url + path, call.encode())
    assert kind == "text/xml"
    value = ElementTree.fromstring(body).find("params/param/value")
    assert value is not None
    return body, value


def member(value: ElementTree.Element, name: str) -> ElementTree.Element:
    """A member of a struct."""
    for entry in value.iterfind("struct/member"):
        if entry.findtext("name") == name:
            found = entry.find("value")
            assert found is not None
            return found
    raise KeyError(name)


# -- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, "a", 0])
async def test_json_rpc_2_has_a_result_or_an_error_and_never_both(pool: SmallPool, number: Any) -> None:
    call = {"jsonrpc": "2.0", "method": "host.get_all", "params": [pool.session], "id": number}
    answer = await json_call(pool, call)
    assert answer == {"jsonrpc": "2.0", "id": number, "result": [h.ref for h in pool.simulator.pool.hosts]}
    answer = await json_call(pool, call | {"method": "VM.get_record", "params": [pool.session, "OpaqueRef:x"]})
    error = {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "OpaqueRef:x"]}
    assert answer == {"jsonrpc": "2.0", "id": number, "error": error}


async def test_json_rpc_1_has_both_and_one_is_null(pool: SmallPool) -> None:
    call = {"method": "host.get_all", "params": [pool.session], "id": 3}
    answer = await json_call(pool, call)
    assert answer == {"result": [h.ref for h in pool.simulator.pool.hosts], "error": None, "id": 3}
    answer = await json_call(pool, call | {"params": ["OpaqueRef:x"]})
    assert answer == {"result": None, "error": ["SESSION_INVALID", "OpaqueRef:x"], "id": 3}


async def test_an_early_error_has_a_third_shape(pool: SmallPool) -> None:
    pool.simulator.pool.master.booting = True
    answer = await json_call(pool, {"method": "host.get_all", "params": [pool.session], "id": 3})
    assert answer == {"jsonrpc": "2.0", "error": ["HOST_STILL_BOOTING"], "id": 0}


async def test_a_lone_object_is_one_parameter(pool: SmallPool) -> None:
    call = {"jsonrpc": "2.0", "method": "session.login_with_password", "params": {"uname": "root"}, "id": 1}
    assert (await json_call(pool, call))["error"]["message"] == "MESSAGE_PARAMETER_COUNT_MISMATCH"


async def test_json_carries_numbers_dates_and_truth(pool: SmallPool) -> None:
    record = await pool.call("VDI.get_record", pool.ref(pool.vdis[0]))
    assert record["virtual_size"] == 4 * MiB
    assert record["managed"] is True
    assert record["snapshot_time"] == "19700101T00:00:00Z"
    assert (await pool.call("VM.get_record", pool.vm))["HVM_shadow_multiplier"] == 1.0


async def test_results_of_tasks_are_xml_over_json_too(pool: SmallPool) -> None:
    snapshot = await pool.task("VM.snapshot", pool.vm, "<&>", [])
    assert snapshot.startswith("<value>OpaqueRef:")
    first, second = [pool.ref(vdi) for vdi in pool.vdis]
    await pool.call("VM.set_is_a_template", snapshot.removeprefix("<value>").removesuffix("</value>"), False)
    assert await pool.task("VDI.set_name_label", first, "x") == ""
    await pool.call("VDI.enable_cbt", second)
    base = await pool.call("VDI.snapshot", second)
    later = await pool.call("VDI.snapshot", second)
    assert await pool.task("VDI.list_changed_blocks", base, later) == "<value>AAAAAAAAAAAAAAAA</value>"


# -- XML ------------------------------------------------------------------------------------------------------------


async def test_xml_has_no_types_for_integers_and_text(pool: SmallPool) -> None:
    raw, value = await xml_call(pool, "VDI.get_record", pool.session, pool.ref(pool.vdis[0]))
    assert member(value, "Status").text == "Success"
    record = member(value, "Value")
    size = member(record, "virtual_size")
    assert (size.text, list(size)) == (str(4 * MiB), [])
    assert list(member(record, "name_label")) == []
    assert member(record, "managed").findtext("boolean") == "1"
    assert member(record, "snapshot_time").findtext("dateTime.iso8601") == "19700101T00:00:00Z"
    assert not any(tag in raw for tag in (b"<int>", b"<i4>", b"<i8>", b"<string>"))


async def test_xml_floats_are_doubles_and_nothing_is_empty_text(pool: SmallPool) -> None:
    _, value = await xml_call(pool, "VM.get_HVM_shadow_multiplier", pool.session, pool.vm)
    assert member(value, "Value").findtext("double") == "1"
    _, value = await xml_call(pool, "VM.set_name_label", pool.session, pool.vm, "a &lt; b")
    assert (member(value, "Value").text or "") == ""
    _, value = await xml_call(pool, "VM.get_name_label", pool.session, pool.vm)
    assert member(value, "Value").text == "a < b"


async def test_xml_failures_are_lists_of_text(pool: SmallPool) -> None:
    pool.simulator.faults.arm(CallFault("VM.get_all", "SR_BACKEND_FAILURE_46", ("", "a <b>", "")))
    _, value = await xml_call(pool, "VM.get_all", pool.session)
    assert member(value, "Status").text == "Failure"
    texts = [entry.text or "" for entry in member(value, "ErrorDescription").iterfind("array/data/value")]
    assert texts == ["SR_BACKEND_FAILURE_46", "", "a <b>", ""]


async def test_the_list_of_methods_has_no_status(pool: SmallPool) -> None:
    _, value = await xml_call(pool, "system.listMethods")
    names = {entry.text for entry in value.iterfind("array/data/value")}
    assert {"VM.snapshot", "VM.get_record", "session.logout", "event.from"} <= names
    assert not {"VM_snapshot", "Async.VM.snapshot"} & names
    answer = await json_call(pool, {"jsonrpc": "2.0", "method": "system.listMethods", "params": [], "id": 1})
    assert set(answer["result"]) == names


async def test_every_listed_name_is_a_known_call(pool: SmallPool) -> None:
    """Too many parameters for nearly any: whatever is said, it is not that the call is unknown."""
    answer = await json_call(pool, {"jsonrpc": "2.0", "method": "system.listMethods", "params": [], "id": 1})
    async with asyncio.TaskGroup() as group:
        sample = answer["result"][::25]
        replies = [group.create_task(said(pool, name)) for name in sample]
    assert "MESSAGE_PARAMETER_COUNT_MISMATCH" in {reply.result() for reply in replies}
    assert "MESSAGE_METHOD_UNKNOWN" not in {reply.result() for reply in replies}


async def said(pool: SmallPool, name: str) -> str:
    call = {"jsonrpc": "2.0", "method": name, "params": [pool.session, *["?"] * 12], "id": 1}
    message: str = (await json_call(pool, call))["error"]["message"]
    return message


async def test_both_endpoints_share_sessions(pool: SmallPool) -> None:
    _, value = await xml_call(pool, "host_get_all", pool.session, path="/RPC2")
    assert len(member(value, "Value").findall("array/data/value")) == 2
    await pool.call("session.logout")
    _, value = await xml_call(pool, "host.get_all", pool.session)
    texts = [entry.text for entry in member(value, "ErrorDescription").iterfind("array/data/value")]
    assert texts == ["SESSION_INVALID", pool.session]


async def test_calls_on_one_connection_are_answered_in_turn(pool: SmallPool) -> None:
    """Two requests sent at once on one socket; the second asks for the end."""
    body = json.dumps({"jsonrpc": "2.0", "method": "host.get_all", "params": [pool.session], "id": 1}).encode()
    last = body.replace(b'"id": 1', b'"id": 2')
    head = b"POST /jsonrpc HTTP/1.1\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n"
    reader, writer = await pool.connect()
    writer.write(head % (len(body), b"keep-alive") + body + head % (len(last), b"close") + last)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.transport.abort()
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answer.index(b'"id":1') < answer.index(b'"id":2')
