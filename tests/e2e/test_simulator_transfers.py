"""Bulk data over HTTP, on raw sockets: what the servers say, when, and what becomes of the task."""

from __future__ import annotations

import asyncio
import base64
import io
import tarfile
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options
from mover.simulator.faults import HttpFault
from tests.simulator_fixtures import MiB, Reply, RpcError, SmallPool, small_pool

SIZE = 4 * MiB
RAW = "/export_raw_vdi?format=raw"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    options = Options(tls=False, linger=0.0)
    async with small_pool(tmp_path / "pool", options, (SIZE,), power_state="Halted") as pool:
        pool.simulator.guest(pool.vdis[0]).fill(0, SIZE, "random")
        yield pool


def content(pool: SmallPool, number: int = 0) -> bytes:
    return pool.simulator.disks.read(pool.vdis[number], 0, pool.simulator.disks.size(pool.vdis[number]))


def head(verb: str, target: str, *fields: str) -> bytes:
    return "\r\n".join([f"{verb} {target} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


async def target(pool: SmallPool, handler: str, *parameters: str, vdi: str | None = None) -> tuple[str, str]:
    """A URL's path with session, disk and a task of our own; and the task."""
    task = await pool.call("task.create", "transfer", "")
    query = [f"session_id={pool.session}", f"task_id={task}", f"vdi={vdi or pool.vdis[0]}", *parameters]
    return f"/{handler}?{'&'.join(query)}", task


async def status(pool: SmallPool, task: str) -> tuple[str, list[str]]:
    record = await pool.call("task.get_record", task)
    return record["status"], record["error_info"]


async def failed(pool: SmallPool, task: str) -> list[str]:
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    return caught.value.description


# -- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", []),
        ("&session_id=OpaqueRef:none", []),
        ("", ["Cookie: session_id=OpaqueRef:none"]),
        ("", [f"Authorization: Basic {base64.b64encode(b'root:wrong').decode()}"]),
        ("", ["Authorization: Basic ???"]),
    ],
)
async def test_strangers_get_401_and_their_task_stays_pending(pool: SmallPool, query: str, fields: list[str]) -> None:
    task = await pool.call("task.create", "transfer", "")
    reply = await pool.http(head("GET", f"{RAW}&vdi={pool.vdis[0]}&task_id={task}{query}", *fields))
    assert reply.status == 401
    assert (reply.header("www-authenticate") or "").startswith("Basic realm=")
    assert await status(pool, task) == ("pending", [])


async def test_a_session_may_come_in_a_cookie_which_goes_first(pool: SmallPool) -> None:
    cookie = f"Cookie: session_id={pool.session}; vdi={pool.vdis[0]}"
    reply = await pool.http(head("GET", f"{RAW}&session_id=OpaqueRef:none&vdi=none", cookie))
    assert (reply.status, reply.rest) == (200, content(pool))


async def test_a_password_opens_a_session_for_the_transfer_alone(pool: SmallPool) -> None:
    words = base64.b64encode(f"{pool.simulator.username}:{pool.simulator.password}".encode()).decode()
    reply = await pool.http(head("GET", f"{RAW}&vdi={pool.vdis[0]}", f"Authorization: Basic {words}"))
    assert (reply.status, reply.rest) == (200, content(pool))
    assert pool.simulator.pool.database.refs("session") == [pool.session]


# -- where ----------------------------------------------------------------------------------------------------------


async def test_a_host_that_does_not_see_the_disk_sends_on_with_the_query_and_nothing_else(tmp_path: Path) -> None:
    async with small_pool(tmp_path, Options(tls=False, local_sr=True, linger=0.0), (), power_state="Halted") as pool:
        database = pool.simulator.pool.database
        (local,) = [ref for ref, record in database.items("SR") if record["name_label"] == "Local storage"]
        vm = pool.simulator.make_vm("local", [SIZE], sr=local, power_state="Halted")
        pool.vdis = pool.simulator.vdis_of(vm)
        path, task = await target(pool, "export_raw_vdi", "format=raw", "odd=a%2Fb%20c")
        reply = await pool.http(head("GET", path, "Cookie: kept=no"))
        assert (reply.status, reply.rest) == (302, b"")
        assert reply.header("location") == f"{pool.simulator.url_of(1)}{path}"
        assert reply.header("connection") == "close"
        assert await status(pool, task) == ("pending", [])
        again = await pool.http(head("GET", path), host=1)
        assert (again.status, again.rest) == (200, content(pool))
        await pool.finished(task)


# -- out ------------------------------------------------------------------------------------------------------------


async def test_an_export_has_no_length_and_ends_with_the_connection(pool: SmallPool) -> None:
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    reply = await pool.http(head("GET", path))
    assert reply.head.startswith("HTTP/1.1 200 ")
    assert reply.header("content-length") is None
    assert reply.header("transfer-encoding") is None
    assert reply.header("connection") == "close"
    assert reply.header("task-id") == task
    assert reply.header("content-disposition") == f'attachment; filename="{pool.vdis[0]}.raw"'
    assert reply.rest == content(pool)
    assert await pool.finished(task) == ""


async def test_without_a_task_the_server_makes_one(pool: SmallPool) -> None:
    reply = await pool.http(head("GET", f"{RAW}&session_id={pool.session}&vdi={pool.vdis[0]}"))
    task = reply.header("task-id")
    assert task
    assert await pool.finished(task) == ""


async def test_a_vhd_is_named_as_one(pool: SmallPool) -> None:
    path, task = await target(pool, "export_raw_vdi", "format=vhd")
    reply = await pool.http(head("GET", path))
    assert reply.header("content-type") == "application/vhd"
    assert reply.rest[:8] == b"conectix"
    assert reply.rest[-512:] == reply.rest[:512]
    await pool.finished(task)


@pytest.mark.parametrize("verb", ["GET", "PUT"])
async def test_an_unknown_format_is_404_and_fails_the_task(pool: SmallPool, verb: str) -> None:
    path, task = await target(pool, "export_raw_vdi" if verb == "GET" else "import_raw_vdi", "format=tape")
    reply = await pool.http(head(verb, path, "Content-Length: 0"))
    assert reply.head.startswith("HTTP/1.0 404 ")
    assert await failed(pool, task) == ["INTERNAL_ERROR", "Unknown format tape"]


async def test_an_unknown_disk_is_500_before_anything_and_the_task_stays_pending(pool: SmallPool) -> None:
    path, task = await target(pool, "export_raw_vdi", vdi="none")
    reply = await pool.http(head("GET", path))
    assert reply.status == 500
    assert b"UUID_INVALID: [ VDI; none; ]" in reply.rest
    assert await status(pool, task) == ("pending", [])


async def test_a_failure_after_the_head_is_a_second_response_in_the_body(pool: SmallPool) -> None:
    """By itself: the head goes out before the disk is attached, and a running VM has the disk."""
    await pool.call("VM.start", pool.vm, False, False)
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    reply = await pool.http(head("GET", path))
    assert reply.status == 200
    assert reply.rest.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    inner, _, page = reply.rest.partition(b"\r\n\r\n")
    assert f"content-length: {len(page)}".encode() in inner
    assert b"SR_BACKEND_FAILURE_46: [ ; The VDI is not available" in page
    assert (await failed(pool, task))[0] == "SR_BACKEND_FAILURE_46"


async def test_a_failure_on_request_lands_after_so_many_bytes(pool: SmallPool) -> None:
    pool.simulator.faults.arm(
        HttpFault("error", "export_raw_vdi", after=MiB + 7, code="VDI_IO_ERROR", params=("disk",))
    )
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    reply = await pool.http(head("GET", path))
    assert reply.status == 200
    assert reply.rest[: MiB + 7] == content(pool)[: MiB + 7]
    assert reply.rest[MiB + 7 :].startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert b"VDI_IO_ERROR: [ disk; ]" in reply.rest[MiB + 7 :]
    assert await failed(pool, task) == ["VDI_IO_ERROR", "disk"]


async def test_a_connection_is_cut_on_request(pool: SmallPool) -> None:
    pool.simulator.faults.arm(HttpFault("close", after=MiB))
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    reader, writer = await pool.connect()
    writer.write(head("GET", path))
    await reader.readuntil(b"\r\n\r\n")
    received = bytearray()
    with suppress(ConnectionError):
        while piece := await reader.read(MiB):
            received += piece
    writer.transport.abort()
    assert len(received) <= MiB
    assert content(pool).startswith(received)
    assert (await failed(pool, task))[0] == "VDI_IO_ERROR"


async def test_a_complete_body_may_belong_to_a_failed_task(pool: SmallPool) -> None:
    pool.simulator.faults.arm(HttpFault("task", code="SR_BACKEND_FAILURE_200", params=("", "EIO", "")))
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    reply = await pool.http(head("GET", path))
    assert reply.rest == content(pool)
    assert await failed(pool, task) == ["SR_BACKEND_FAILURE_200", "", "EIO", ""]


async def test_a_client_that_hangs_up_fails_its_task_and_frees_the_disk(tmp_path: Path) -> None:
    size = 64 * MiB
    async with small_pool(tmp_path, Options(tls=False, linger=0.0), (size,), power_state="Halted") as pool:
        pool.simulator.guest(pool.vdis[0]).fill(0, size, "random")
        path, task = await target(pool, "export_raw_vdi", "format=raw")
        _, writer = await pool.connect()
        writer.write(head("GET", path))
        await writer.drain()
        writer.transport.abort()
        assert (await failed(pool, task))[0] == "VDI_IO_ERROR"
        await unplugged(pool)
        assert (await pool.http(head("GET", (await target(pool, "export_raw_vdi"))[0]))).rest == content(pool)


async def unplugged(pool: SmallPool) -> None:
    """Wait until no control domain has the disk."""
    database = pool.simulator.pool.database
    while True:
        changed = database.changed()
        if not pool.simulator.pool.attached(pool.ref(pool.vdis[0])):
            return
        await changed.wait()


async def test_cancelling_is_heard_by_nobody(pool: SmallPool) -> None:
    path, task = await target(pool, "export_raw_vdi", "format=raw")
    await pool.call("task.cancel", task)
    assert (await pool.http(head("GET", path))).rest == content(pool)
    assert await pool.finished(task) == ""


async def test_metadata_of_a_vm_is_a_tar_with_xml(pool: SmallPool) -> None:
    task = await pool.call("task.create", "metadata", "")
    reply = await pool.http(
        head("GET", f"/export_metadata?session_id={pool.session}&task_id={task}&ref={pool.vm}&export_snapshots=false")
    )
    assert reply.head.startswith("HTTP/1.0 200 ")
    assert reply.header("content-length") == str(len(reply.rest))
    assert reply.rest.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(reply.rest)) as tar:
        assert tar.getnames() == ["ova.xml"]
        member = tar.extractfile("ova.xml")
        assert member is not None
        text = member.read()
    wrapped = b"<methodResponse><params><param>" + text + b"</param></params></methodResponse>"
    ((document,), _) = xmlrpc.client.loads(wrapped.decode())
    assert document["version"]["export_vsn"] == "2", "integers have no type here either"
    objects: dict[str, dict[str, Any]] = {o["id"]: o for o in document["objects"]}
    assert all(ref.startswith("Ref:") for ref in objects)
    (vm,) = [o["snapshot"] for o in objects.values() if o["class"] == "VM"]
    assert vm["name_label"] == "small"
    assert vm["uuid"] == (await pool.call("VM.get_uuid", pool.vm))
    for name, cls in (("VBDs", "VBD"), ("VIFs", "VIF")):
        assert vm[name]
        assert {objects[ref]["class"] for ref in vm[name]} == {cls}
    disks = [objects[objects[vbd]["snapshot"]["VDI"]] for vbd in vm["VBDs"] if not objects[vbd]["snapshot"]["empty"]]
    assert [disk["snapshot"]["uuid"] for disk in disks] == pool.vdis
    assert "OpaqueRef:" not in text.decode().replace("OpaqueRef:NULL", "")
    assert await pool.finished(task) == ""


async def test_numbers_in_metadata_go_on_over_the_life_of_a_server(pool: SmallPool) -> None:
    request = head("GET", f"/export_metadata?session_id={pool.session}&ref={pool.vm}")
    first, second = (await pool.http(request)).rest, (await pool.http(request)).rest
    assert b"Ref:1<" in first
    assert b"Ref:1<" not in second


# -- in -------------------------------------------------------------------------------------------------------------


async def upload(pool: SmallPool, path: str, body: bytes, *fields: str) -> Reply:
    """A PUT whose body is sent only after the answer, which has to come before it."""
    reader, writer = await pool.connect()
    try:
        writer.write(head("PUT", path, *(fields or (f"Content-Length: {len(body)}",))))
        early = await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            writer.write(body)
            await writer.drain()
        rest = await reader.read()
    finally:
        writer.transport.abort()
    text = early.decode("latin-1").removesuffix("\r\n\r\n")
    return Reply(int(text.split(" ")[1]), text, rest)


async def test_an_upload_is_answered_before_it_is_read(pool: SmallPool) -> None:
    body = bytes(range(256)) * (SIZE // 256)
    path, task = await target(pool, "import_raw_vdi", "format=raw")
    reply = await upload(pool, path, body)
    assert (reply.status, reply.rest) == (200, b"")
    assert reply.header("content-length") is None
    assert await pool.finished(task) == f"<value>{pool.ref(pool.vdis[0])}</value>"
    assert content(pool) == body


async def test_chunked_encoding_is_refused(pool: SmallPool) -> None:
    before = content(pool)
    path, task = await target(pool, "import_raw_vdi", "format=raw")
    reply = await pool.http(head("PUT", path, "Transfer-Encoding: chunked"), upload=b"0\r\n\r\n")
    assert reply.head.startswith("HTTP/1.0 404 ")
    assert await failed(pool, task) == ["INTERNAL_ERROR", "Cannot handle encoding: chunked"]
    assert content(pool) == before


async def test_a_probe_without_body_or_task_changes_nothing(pool: SmallPool) -> None:
    before = content(pool)
    probe = f"/import_raw_vdi?session_id={pool.session}&vdi={pool.vdis[0]}&format=vhd"
    reply = await pool.http(head("PUT", probe, "Content-Length: 0"))
    assert reply.status == 200
    await unplugged(pool)
    assert content(pool) == before
    path, task = await target(pool, "import_raw_vdi", "format=raw")
    assert (await upload(pool, path, bytes(SIZE))).status == 200
    await pool.finished(task)
    assert content(pool) == bytes(SIZE)


@pytest.mark.parametrize("format", ["raw", "vhd"])
async def test_a_body_that_ends_early_fails_the_task(pool: SmallPool, format: str) -> None:
    export, _ = await target(pool, "export_raw_vdi", f"format={format}")
    whole = (await pool.http(head("GET", export))).rest
    await unplugged(pool)
    path, task = await target(pool, "import_raw_vdi", f"format={format}")
    reader, writer = await pool.connect()
    writer.write(head("PUT", path, f"Content-Length: {len(whole)}") + whole[: len(whole) // 2])
    writer.write_eof()
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.transport.abort()
    assert (await failed(pool, task))[0] == "VDI_IO_ERROR"


async def test_a_vhd_of_a_wrong_length_fails_late(pool: SmallPool) -> None:
    export, _ = await target(pool, "export_raw_vdi", "format=vhd")
    whole = (await pool.http(head("GET", export))).rest
    await unplugged(pool)
    path, task = await target(pool, "import_raw_vdi", "format=vhd")
    reply = await upload(pool, path, whole + bytes(4096))
    assert reply.status == 200
    assert b"HTTP/1.1 500 " in reply.rest
    assert (await failed(pool, task))[0] == "VDI_IO_ERROR"


async def test_an_upload_onto_a_disk_in_use_is_refused_after_the_200(pool: SmallPool) -> None:
    await pool.call("VM.start", pool.vm, False, False)
    path, task = await target(pool, "import_raw_vdi", "format=raw")
    reply = await upload(pool, path, b"")
    assert reply.status == 200
    assert reply.rest.startswith(b"HTTP/1.1 500 ")
    assert (await failed(pool, task))[0] == "VDI_IN_USE"


async def test_the_servers_own_frames_need_no_length(pool: SmallPool) -> None:
    before = content(pool)
    frame = (MiB).to_bytes(8, "little") + (512).to_bytes(4, "little") + b"x" * 512
    path, task = await target(pool, "import_raw_vdi", "format=raw", "chunked=true")
    reply = await upload(pool, path, frame + bytes(12), "Accept: */*")
    assert reply.status == 200
    await pool.finished(task)
    assert content(pool) == before[:MiB] + b"x" * 512 + before[MiB + 512 :]


async def test_a_repository_makes_room_for_a_raw_disk(pool: SmallPool) -> None:
    database = pool.simulator.pool.database
    sr = database.get("VDI", pool.ref(pool.vdis[0]))["SR"]
    task = await pool.call("task.create", "transfer", "")
    body = b"y" * (MiB + 512)
    path = f"/import_raw_vdi?session_id={pool.session}&task_id={task}&sr_id={sr}&format=raw"
    assert (await upload(pool, path, body)).status == 200
    made = (await pool.finished(task)).removeprefix("<value>").removesuffix("</value>")
    record = await pool.call("VDI.get_record", made)
    assert (record["name_label"], record["virtual_size"]) == ("Imported VDI", 2 * MiB)
    assert pool.simulator.disks.read(record["uuid"], 0, len(body)) == body
    task = await pool.call("task.create", "transfer", "")
    path = (
        f"/import_raw_vdi?session_id={pool.session}&task_id={task}&sr_uuid={database.get('SR', sr)['uuid']}&format=vhd"
    )
    assert (await pool.http(head("PUT", path, "Content-Length: 0"))).status == 400
    assert (await failed(pool, task))[0] == "INTERNAL_ERROR"


async def test_a_full_repository_fails_an_upload_after_the_200(pool: SmallPool) -> None:
    pool.simulator.faults.sr_full = True
    path, task = await target(pool, "import_raw_vdi", "format=raw")
    reply = await upload(pool, path, b"")
    assert reply.status == 200
    assert reply.rest.startswith(b"HTTP/1.1 500 ")
    assert (await failed(pool, task))[0] == "SR_BACKEND_FAILURE_44"


async def test_many_transfers_at_once(tmp_path: Path) -> None:
    sizes = (SIZE,) * 6
    async with small_pool(tmp_path, Options(tls=False, linger=0.0), sizes, power_state="Halted") as pool:
        for vdi in pool.vdis:
            pool.simulator.guest(vdi).fill(0, SIZE, "random")
        paths = [(await target(pool, "export_raw_vdi", vdi=vdi))[0] for vdi in pool.vdis]
        async with asyncio.TaskGroup() as group:
            replies = [group.create_task(pool.http(head("GET", path), host=n % 2)) for n, path in enumerate(paths)]
        assert [reply.result().rest for reply in replies] == [content(pool, n) for n in range(len(sizes))]
