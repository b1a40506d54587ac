"""Bulk HTTP of the simulated pool, byte by byte on raw sockets: heads, tasks, redirects, and how it goes wrong."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import tarfile
import xmlrpc.client
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from simulator_fixtures import MiB, Reply, RpcError, SmallPool, small_pool

from mover.simulator import Options
from mover.simulator.faults import HttpFault

SIZE = 4 * MiB
VHD_BLOCK = 2 * MiB


@pytest.fixture(params=["plain", "tls"])
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SmallPool]:
    options = Options(tls=request.param == "tls", linger=0.0)
    async with small_pool(tmp_path / "pool", options, sizes=(SIZE,), power_state="Halted") as pool:
        yield pool


def head(verb: str, path: str, *lines: str, **query: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{verb} {path}?{urlencode(query)} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


async def export(pool: SmallPool, host: int = 0, **query: str) -> Reply:
    named = {"session_id": pool.session, "vdi": pool.vdis[0]} | query
    return await pool.http(head("GET", "/export_raw_vdi", **named), host)


async def upload(pool: SmallPool, body: bytes, *lines: str, vdi: str = "", **query: str) -> Reply:
    named = {"session_id": pool.session, "vdi": vdi or pool.vdis[0]} | query
    lines = lines or (f"Content-Length: {len(body)}",)
    return await pool.http(head("PUT", "/import_raw_vdi", *lines, **named), upload=body)


async def new_task(pool: SmallPool) -> str:
    task: str = await pool.call("task.create", "transfer", "")
    return task


async def failed(pool: SmallPool, task: str, *description: str) -> None:
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    assert tuple(caught.value.description[: len(description)]) == description


def content(pool: SmallPool, vdi: str = "") -> bytes:
    return pool.simulator.disks.read(vdi or pool.vdis[0], 0, SIZE)


def fill(pool: SmallPool) -> bytes:
    pool.simulator.guest(pool.vdis[0]).fill(100_000, MiB, "random")
    return content(pool)


# -- exports ---------------------------------------------------------------------------------------------------------


async def test_a_raw_export_ends_with_the_connection(pool: SmallPool) -> None:
    expected = fill(pool)
    task = await new_task(pool)
    reply = await export(pool, task_id=task)
    assert (reply.status, reply.rest) == (200, expected)
    assert (reply.header("content-length"), reply.header("connection")) == (None, "close")
    assert (reply.header("task-id"), reply.header("content-type")) == (task, "application/octet-stream")
    assert reply.header("content-disposition") == f'attachment; filename="{pool.vdis[0]}.raw"'
    assert await pool.finished(task) == ""


async def test_an_export_without_a_task_gets_one(pool: SmallPool) -> None:
    reply = await export(pool, vdi=pool.ref(pool.vdis[0]))
    assert await pool.finished(reply.header("task-id") or "") == ""


async def test_a_vhd_export(pool: SmallPool) -> None:
    pool.simulator.guest(pool.vdis[0]).write(VHD_BLOCK, b"in the second block")
    body = (await export(pool, format="vhd")).rest
    assert (body[:8], body[512:520], body[-512:]) == (b"conectix", b"cxsparse", body[:512])
    assert struct.unpack(">II", body[2048:2056]) == (0xFFFFFFFF, (2048 + 512) // 512)
    assert body[2560:3072] == b"\xff" * 512
    assert body[3072:3091] == b"in the second block"
    assert len(body) == 2560 + 512 + VHD_BLOCK + 512


async def test_a_vhd_export_with_a_base(pool: SmallPool) -> None:
    fill(pool)
    base = await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))
    pool.simulator.guest(pool.vdis[0]).write(VHD_BLOCK + 512, b"new")
    body = (await export(pool, format="vhd", base=base)).rest
    assert struct.unpack(">I", body[60:64]) == (4,)
    assert struct.unpack(">II", body[2048:2056]) == (0xFFFFFFFF, (2048 + 512) // 512)
    assert body[3072 + 512 : 3072 + 515] == b"new"


async def test_whoever_hangs_up_fails_the_task_and_nothing_else(pool: SmallPool) -> None:
    for _ in range(16):
        pool.simulator.guest(pool.vdis[0]).scatter(1, 4096)
    big = await pool.call(
        "VDI.create", await pool.call("VDI.get_record", pool.ref(pool.vdis[0])) | {"virtual_size": 256 * MiB}
    )
    task = await new_task(pool)
    reader, writer = await pool.connect()
    query = {"session_id": pool.session, "vdi": big, "task_id": task}
    writer.write(head("GET", "/export_raw_vdi", **query))
    await reader.readexactly(4096)
    writer.transport.abort()
    await failed(pool, task, "VDI_IO_ERROR", "Device I/O errors")
    assert (await export(pool)).status == 200


async def test_what_fails_after_the_head_is_a_response_within_the_body(pool: SmallPool) -> None:
    """xen-api issue 4603: a disk that a guest has open cannot be attached."""
    await pool.call("VM.start", pool.vm, False, False)
    task = await new_task(pool)
    reply = await export(pool, task_id=task)
    assert reply.status == 200
    assert reply.rest.startswith(b"HTTP/1.1 500 Internal Error\r\ncontent-length: ")
    assert b"SR_BACKEND_FAILURE_46: [ ; The VDI is not available [opterr=VDI " in reply.rest
    await failed(pool, task, "SR_BACKEND_FAILURE_46", "")


async def test_the_same_after_megabytes(pool: SmallPool) -> None:
    expected = fill(pool)
    pool.simulator.faults.arm(HttpFault("error", "export_raw_vdi", after=3 * MiB + 5))
    task = await new_task(pool)
    reply = await export(pool, task_id=task)
    assert reply.rest[: 3 * MiB + 5] == expected[: 3 * MiB + 5]
    assert reply.rest[3 * MiB + 5 :].startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert b"VDI_IO_ERROR: [ Device I/O errors; ]" in reply.rest[3 * MiB :]
    await failed(pool, task, "VDI_IO_ERROR")
    assert (await export(pool)).rest == expected


async def test_a_connection_that_is_cut(pool: SmallPool) -> None:
    pool.simulator.faults.arm(HttpFault("close", after=MiB))
    task = await new_task(pool)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        reply = await export(pool, task_id=task)
        assert len(reply.rest) == MiB
        raise ConnectionResetError  # over TLS the end may come without an error
    await failed(pool, task, "VDI_IO_ERROR")


async def test_a_task_may_fail_after_a_complete_body(pool: SmallPool) -> None:
    pool.simulator.faults.arm(HttpFault("task", "export_raw_vdi"))
    task = await new_task(pool)
    reply = await export(pool, task_id=task)
    assert len(reply.rest) == SIZE
    await failed(pool, task, "VDI_IO_ERROR")


async def test_metadata_without_data_cannot_be_exported(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    await pool.call("VDI.enable_cbt", vdi)
    snapshot = await pool.call("VDI.snapshot", vdi)
    await pool.call("VDI.data_destroy", snapshot)
    for query in ({"vdi": snapshot}, {"format": "vhd", "base": snapshot}):
        reply = await export(pool, **query)
        assert (reply.status, reply.rest[:12]) == (200, b"HTTP/1.1 500")
        assert b"VDI_INCOMPATIBLE_TYPE" in reply.rest


async def test_a_disk_stays_attached_for_a_moment(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, linger=60.0)) as pool:
        vdi = await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))
        reply = await export(pool, vdi=vdi)
        await pool.finished(reply.header("task-id") or "")
        with pytest.raises(RpcError, match="VDI_IN_USE"):
            await pool.call("VDI.destroy", vdi)
        (vbd,) = await pool.call("VDI.get_VBDs", vdi)
        owner = await pool.call("VM.get_record", await pool.call("VBD.get_VM", vbd))
        assert owner["is_control_domain"]
        await pool.call("VBD.unplug", vbd)
        await pool.call("VBD.destroy", vbd)
        await pool.call("VDI.destroy", vdi)


# -- who may, and where ----------------------------------------------------------------------------------------------


async def test_who_is_unknown_is_refused_and_the_task_stays_pending(pool: SmallPool) -> None:
    task = await new_task(pool)
    for session in ("", "OpaqueRef:none"):
        reply = await export(pool, session_id=session, task_id=task)
        assert reply.status == 401
        assert (reply.header("www-authenticate") or "").startswith("Basic realm=")
    assert (await export(pool, vdi="OpaqueRef:none", task_id=task)).status == 500
    assert await pool.call("task.get_status", task) == "pending"


async def test_a_cookie_comes_before_the_query(pool: SmallPool) -> None:
    request = head("GET", "/export_raw_vdi", f"Cookie: session_id={pool.session}", session_id="x", vdi=pool.vdis[0])
    assert (await pool.http(request)).status == 200
    request = head("GET", "/export_raw_vdi", "Cookie: session_id=x", session_id=pool.session, vdi=pool.vdis[0])
    assert (await pool.http(request)).status == 401


async def test_basic_authentication_has_a_session_for_itself(pool: SmallPool) -> None:
    before = pool.simulator.pool.database.refs("session")
    for password, status in ((pool.simulator.password, 200), ("wrong", 401)):
        token = base64.b64encode(f"root:{password}".encode()).decode()
        request = head("GET", "/export_raw_vdi", f"Authorization: Basic {token}", vdi=pool.vdis[0])
        assert (await pool.http(request)).status == status
    assert pool.simulator.pool.database.refs("session") == before


async def test_members_transfer_with_a_session_of_the_master(pool: SmallPool) -> None:
    expected = fill(pool)
    assert (await export(pool, host=1)).rest == expected


async def test_a_host_that_does_not_see_the_disk_sends_to_one_that_does(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, local_sr=True)) as pool:
        (local,) = await pool.call("SR.get_by_name_label", "Local storage")
        record = await pool.call("VDI.get_record", pool.ref(pool.vdis[0]))
        vdi = await pool.call("VDI.create", record | {"SR": local})
        task = await new_task(pool)
        reply = await export(pool, vdi=vdi, task_id=task)
        query = urlencode({"session_id": pool.session, "vdi": vdi, "task_id": task})
        assert (reply.status, reply.rest) == (302, b"")
        assert reply.header("location") == f"{pool.simulator.url_of(1)}/export_raw_vdi?{query}"
        assert await pool.call("task.get_status", task) == "pending"
        assert (await export(pool, host=1, vdi=vdi, task_id=task)).status == 200
        assert await pool.finished(task) == ""


async def test_an_unknown_format_fails_the_task(pool: SmallPool) -> None:
    task = await new_task(pool)
    assert (await export(pool, format="floppy", task_id=task)).status == 404
    await failed(pool, task, "INTERNAL_ERROR", "Unknown format floppy")


# -- uploads ---------------------------------------------------------------------------------------------------------


async def test_a_raw_upload(pool: SmallPool) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    task = await new_task(pool)
    reply = await upload(pool, data, task_id=task)
    assert (reply.status, reply.rest) == (200, b"")
    assert await pool.finished(task) == f"<value>{pool.ref(pool.vdis[0])}</value>"
    assert content(pool) == data


async def test_the_answer_comes_before_the_body(pool: SmallPool) -> None:
    reader, writer = await pool.connect()
    query = {"session_id": pool.session, "vdi": pool.vdis[0]}
    writer.write(head("PUT", "/import_raw_vdi", f"Content-Length: {SIZE}", **query))
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    writer.write(b"x" * SIZE)
    assert await reader.read() == b""
    writer.transport.abort()
    assert content(pool) == b"x" * SIZE


async def test_http_chunks_are_refused(pool: SmallPool) -> None:
    task = await new_task(pool)
    reply = await upload(pool, b"", "Transfer-Encoding: chunked", task_id=task)
    assert reply.head.startswith("HTTP/1.0 404")
    await failed(pool, task, "INTERNAL_ERROR", "Cannot handle encoding: chunked")


async def test_the_pools_own_frames(pool: SmallPool) -> None:
    frames = struct.pack("<QI", MiB, 3) + b"abc" + struct.pack("<QI", 512, 2) + b"de" + struct.pack("<QI", 0, 0)
    task = await new_task(pool)
    await upload(pool, frames, "Connection: close", chunked="true", task_id=task)
    await pool.finished(task)
    assert (content(pool)[512:514], content(pool)[MiB : MiB + 3]) == (b"de", b"abc")
    task = await new_task(pool)
    assert (await upload(pool, frames, chunked="true", format="vhd", task_id=task)).status == 404


async def test_a_vhd_upload_needs_its_exact_length(pool: SmallPool) -> None:
    expected = fill(pool)
    vhd = (await export(pool, format="vhd")).rest
    target = await pool.call("VDI.create", await pool.call("VDI.get_record", pool.ref(pool.vdis[0])))
    uuid = await pool.call("VDI.get_uuid", target)
    await pool.finished((await upload(pool, vhd, vdi=uuid, format="vhd")).header("task-id") or "")
    assert content(pool, uuid) == expected
    reply = await upload(pool, vhd[:-512], vdi=uuid, format="vhd")
    await failed(pool, reply.header("task-id") or "", "VDI_IO_ERROR")
    assert reply.rest.startswith(b"HTTP/1.1 500")


async def test_a_body_that_ends_early_fails(pool: SmallPool) -> None:
    task = await new_task(pool)
    reader, writer = await pool.connect()
    query = {"session_id": pool.session, "vdi": pool.vdis[0], "task_id": task}
    writer.write(head("PUT", "/import_raw_vdi", f"Content-Length: {SIZE}", **query) + b"x" * 1000)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    await failed(pool, task, "VDI_IO_ERROR")


async def test_more_than_the_disk_holds_fails(pool: SmallPool) -> None:
    reply = await upload(pool, bytes(SIZE + 512))
    await failed(pool, reply.header("task-id") or "", "VDI_IO_ERROR")


async def test_looking_for_a_redirect_with_an_empty_body_does_no_harm(pool: SmallPool) -> None:
    for format in ("raw", "vhd"):
        assert (await upload(pool, b"", format=format)).status == 200
    data = b"y" * SIZE
    reply = await upload(pool, data)
    await pool.finished(reply.header("task-id") or "")
    assert content(pool) == data


async def test_a_disk_in_use_takes_no_upload(pool: SmallPool) -> None:
    await pool.call("VM.start", pool.vm, False, False)
    reply = await upload(pool, bytes(SIZE))
    await failed(pool, reply.header("task-id") or "", "VDI_IN_USE")


async def test_a_raw_upload_into_a_repository_makes_a_disk(pool: SmallPool) -> None:
    (repository,) = await pool.call("SR.get_all")
    request = head("PUT", "/import_raw_vdi", "Content-Length: 1000", session_id=pool.session, sr_id=repository)
    reply = await pool.http(request, upload=b"z" * 1000)
    vdi = (await pool.finished(reply.header("task-id") or "")).removeprefix("<value>").removesuffix("</value>")
    record = await pool.call("VDI.get_record", vdi)
    assert (record["name_label"], record["virtual_size"]) == ("Imported VDI", 2 * MiB)
    assert pool.simulator.disks.read(record["uuid"], 0, 1001) == b"z" * 1000 + b"\0"
    query = {"session_id": pool.session, "sr_uuid": await pool.call("SR.get_uuid", repository), "format": "vhd"}
    refused = await pool.http(head("PUT", "/import_raw_vdi", "Content-Length: 1", **query), upload=b"x")
    assert refused.status == 400


# -- metadata --------------------------------------------------------------------------------------------------------


async def test_metadata_is_a_tar_with_one_document(pool: SmallPool) -> None:
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    task = await new_task(pool)
    query = {"session_id": pool.session, "task_id": task, "ref": snapshot}
    reply = await pool.http(head("GET", "/export_metadata", **query))
    assert reply.head.startswith("HTTP/1.0 200 OK")
    assert reply.header("content-length") == str(len(reply.rest))
    await pool.finished(task)
    with tarfile.open(fileobj=io.BytesIO(reply.rest)) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.mode, member.type) == ("ova.xml", 0o400, b"\0")
        xml = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
    assert reply.rest[257:263] == bytes(6)
    wrapped = f"<methodResponse><params><param>{xml}</param></params></methodResponse>"
    ((document,), _) = xmlrpc.client.loads(wrapped)
    version, objects = document["version"], document["objects"]
    assert (version["product_brand"], version["export_vsn"]) == ("XCP-ng", "2")
    by_class: dict[str, list[dict[str, Any]]] = {}
    for entry in objects:
        by_class.setdefault(entry["class"], []).append(entry)
    (vm,) = by_class["VM"]
    assert (vm["snapshot"]["name_label"], vm["snapshot"]["is_a_snapshot"]) == ("s", False)
    ids = {entry["id"] for entry in objects}
    assert all(entry["id"].startswith("Ref:") for entry in objects)
    assert set(vm["snapshot"]["VBDs"]) == {entry["id"] for entry in by_class["VBD"]} <= ids
    assert "OpaqueRef:" not in xml.replace("OpaqueRef:NULL", "")
    assert "<int>" not in xml
    assert "<i4>" not in xml
