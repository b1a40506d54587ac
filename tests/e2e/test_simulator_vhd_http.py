"""VHD over the HTTP of the simulated pool: what an export holds, on which host, and what an upload has to be."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from mover.simulator import Options
from tests.simulator_fixtures import MiB, Reply, RpcError, SmallPool, small_pool

SIZE = 4 * MiB
BLOCK = 2 * MiB


@pytest.fixture(params=["plain", "tls"])
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SmallPool]:
    options = Options(tls=request.param == "tls", linger=0.0)
    async with small_pool(tmp_path / "pool", options, sizes=(SIZE,), power_state="Halted") as pool:
        yield pool


async def export(pool: SmallPool, host: int = 0, **query: str) -> Reply:
    named = {"session_id": pool.session, "vdi": pool.vdis[0], "format": "vhd"} | query
    return await pool.http(f"GET /export_raw_vdi?{urlencode(named)} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), host)


async def upload(pool: SmallPool, vdi: str, body: bytes, format: str = "vhd") -> Reply:
    named = urlencode({"session_id": pool.session, "vdi": vdi, "format": format})
    head = f"PUT /import_raw_vdi?{named} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return await pool.http(head.encode(), upload=body)


async def new_disk(pool: SmallPool) -> str:
    record = await pool.call("VDI.get_record", pool.ref(pool.vdis[0]))
    vdi: str = await pool.call("VDI.create", record)
    return vdi


async def test_the_layout_of_an_export(pool: SmallPool) -> None:
    pool.simulator.guest(pool.vdis[0]).write(BLOCK, b"in the second block")
    body = (await export(pool)).rest
    assert (body[:8], body[512:520], body[-512:]) == (b"conectix", b"cxsparse", body[:512])
    assert struct.unpack(">II", body[2048:2056]) == (0xFFFFFFFF, (2048 + 512) // 512)
    assert body[2560:3072] == b"\xff" * 512
    assert body[3072:3091] == b"in the second block"
    assert len(body) == 2560 + 512 + BLOCK + 512


async def test_a_base_leaves_out_what_both_have(pool: SmallPool) -> None:
    guest = pool.simulator.guest(pool.vdis[0])
    guest.fill(0, SIZE, "random")
    base = await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))
    guest.write(BLOCK + 512, b"new")
    body = (await export(pool, base=base)).rest
    assert struct.unpack(">I", body[60:64]) == (4,)
    assert struct.unpack(">II", body[2048:2056]) == (0xFFFFFFFF, (2048 + 512) // 512)
    assert body[3072 + 512 : 3072 + 515] == b"new"


async def test_what_has_no_data_is_no_base(pool: SmallPool) -> None:
    await pool.call("VDI.enable_cbt", pool.ref(pool.vdis[0]))
    base = await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))
    await pool.call("VDI.data_destroy", base)
    reply = await export(pool, base=base)
    assert (reply.status, reply.rest[:12]) == (200, b"HTTP/1.1 500")
    assert b"VDI_INCOMPATIBLE_TYPE" in reply.rest


async def test_a_member_exports_with_a_session_of_the_master(pool: SmallPool) -> None:
    pool.simulator.guest(pool.vdis[0]).fill(0, SIZE, "random")
    replies = [await export(pool, host=host, format="raw") for host in (0, 1)]
    assert replies[0].rest == replies[1].rest == pool.simulator.disks.read(pool.vdis[0], 0, SIZE)


async def test_an_export_can_be_uploaded_to_another_disk(pool: SmallPool) -> None:
    pool.simulator.guest(pool.vdis[0]).fill(100_000, MiB, "random")
    vhd = (await export(pool)).rest
    target = await new_disk(pool)
    reply = await upload(pool, target, vhd)
    assert await pool.finished(reply.header("task-id") or "") == f"<value>{target}</value>"
    uuid = await pool.call("VDI.get_uuid", target)
    assert pool.simulator.disks.read(uuid, 0, SIZE) == pool.simulator.disks.read(pool.vdis[0], 0, SIZE)


async def test_an_upload_writes_only_what_is_in_it(pool: SmallPool) -> None:
    """How a difference is applied: the blocks that the stream does not hold keep what they have."""
    pool.simulator.guest(pool.vdis[0]).write(BLOCK, b"second")
    vhd = (await export(pool)).rest
    target = await new_disk(pool)
    uuid = await pool.call("VDI.get_uuid", target)
    pool.simulator.disks.write(uuid, 0, b"first")
    await pool.finished((await upload(pool, target, vhd)).header("task-id") or "")
    assert pool.simulator.disks.read(uuid, 0, 5) == b"first"
    assert pool.simulator.disks.read(uuid, BLOCK, 6) == b"second"


async def test_more_than_the_disk_holds_fails_late(pool: SmallPool) -> None:
    target = await new_disk(pool)
    reply = await upload(pool, target, bytes(SIZE + 512), format="raw")
    assert reply.status == 200
    with pytest.raises(RpcError, match="VDI_IO_ERROR"):
        await pool.finished(reply.header("task-id") or "")
