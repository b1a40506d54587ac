"""Disks that control domains hold: while NBD clients and transfers use them, a moment longer, and after a crash."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options
from mover.simulator.faults import HttpFault
from mover.simulator.persistence import Persistence
from tests.simulator_fixtures import MiB, RpcError, SmallPool, small_pool

QUICK = Options(tls=False, nbd="insecure", linger=0.0, data_destroy_wait=0.1)
LINGERING = Options(tls=False, nbd="insecure", linger=60.0, data_destroy_wait=0.1)


class Nbd:
    """A connection of an NBD client, as far as opening an export and reading from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
        self._reader, self._writer = reader, writer
        self.size = size

    async def read(self, offset: int, length: int) -> bytes:
        self._writer.write(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, offset, length))
        magic, errno, handle = struct.unpack(">IIQ", await self._reader.readexactly(16))
        assert (magic, errno, handle) == (0x67446698, 0, 7)
        return await self._reader.readexactly(length)


@asynccontextmanager
async def nbd(info: dict[str, Any]) -> AsyncIterator[Nbd]:
    """Connect where VDI.get_nbd_info says. Raises asyncio.IncompleteReadError if the server just hangs up."""
    reader, writer = await asyncio.open_connection(info["address"], info["port"], limit=8 * MiB)
    try:
        async with asyncio.timeout(30):
            assert (await reader.readexactly(18)).startswith(b"NBDMAGICIHAVEOPT")
            name = info["exportname"].encode()
            writer.write(struct.pack(">I", 1) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
            size, flags, _ = struct.unpack(">QH124s", await reader.readexactly(134))
        assert flags == 3
        yield Nbd(reader, writer, size)
    finally:
        writer.transport.abort()


async def snapshot_of(pool: SmallPool) -> str:
    """A snapshot of the first disk, with a change log, that is part of no VM."""
    vdi = pool.ref(pool.vdis[0])
    await pool.call("VDI.enable_cbt", vdi)
    snapshot: str = await pool.call("VDI.snapshot", vdi)
    return snapshot


async def code_of(awaitable: Any) -> list[str]:
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.description


async def free(pool: SmallPool, vdi: str) -> None:
    """Wait until no control domain has the disk."""
    while True:
        changed = pool.simulator.pool.database.changed()
        if not pool.simulator.pool.attached(vdi):
            return
        await changed.wait()


async def test_an_nbd_client_is_a_vbd_in_the_control_domain_of_its_host(tmp_path: Path) -> None:
    async with small_pool(tmp_path, QUICK) as pool:
        pool.simulator.guest(pool.vdis[0]).fill(0, MiB, "random")
        snapshot = await snapshot_of(pool)
        _, there = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(there) as one, nbd(there) as two:
            assert one.size == two.size == 4 * MiB
            assert await one.read(0, MiB) == pool.simulator.disks.read(pool.vdis[0], 0, MiB)
            vbds = [await pool.call("VBD.get_record", vbd) for vbd in await pool.call("VDI.get_VBDs", snapshot)]
            dom0 = pool.simulator.pool.database.get("host", pool.simulator.pool.hosts[1].ref)["control_domain"]
            assert [(vbd["VM"], vbd["mode"], vbd["currently_attached"]) for vbd in vbds] == [(dom0, "RO", True)] * 2
            assert len({vbd["userdevice"] for vbd in vbds}) == 2
        await free(pool, snapshot)
        assert await pool.call("VDI.get_VBDs", snapshot) == []


async def test_what_is_read_cannot_be_destroyed_compared_or_stripped(tmp_path: Path) -> None:
    async with small_pool(tmp_path, QUICK) as pool:
        base, snapshot = await snapshot_of(pool), await snapshot_of(pool)
        info, *_ = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(info) as client:
            assert await code_of(pool.call("VDI.destroy", snapshot)) == ["VDI_IN_USE", snapshot, "destroy"]
            assert await code_of(pool.call("VDI.data_destroy", snapshot)) == ["VDI_IN_USE", snapshot, "data_destroy"]
            comparison = pool.call("VDI.list_changed_blocks", base, snapshot)
            assert await code_of(comparison) == ["VDI_IN_USE", snapshot, "list_changed_blocks"]
            # The older of the two may be in use.
            newest = await snapshot_of(pool)
            await pool.call("VDI.list_changed_blocks", snapshot, newest)
            assert await client.read(0, 512) == bytes(512)
        await free(pool, snapshot)
        await pool.call("VDI.list_changed_blocks", base, snapshot)
        await pool.call("VDI.data_destroy", snapshot)
        await pool.call("VDI.destroy", snapshot)


async def test_it_stays_attached_for_a_while_after_the_client_left(tmp_path: Path) -> None:
    async with small_pool(tmp_path, LINGERING) as pool:
        snapshot = await snapshot_of(pool)
        info, *_ = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(info) as client:
            await client.read(0, 512)
        assert await code_of(pool.call("VDI.destroy", snapshot)) == ["VDI_IN_USE", snapshot, "destroy"]
        (vbd,) = await pool.call("VDI.get_VBDs", snapshot)
        await pool.call("VBD.unplug", vbd)
        await pool.call("VBD.destroy", vbd)
        await pool.call("VDI.destroy", snapshot)


async def test_an_export_holds_its_disk_beyond_the_end_of_its_task(tmp_path: Path) -> None:
    async with small_pool(tmp_path, LINGERING) as pool:
        snapshot = await snapshot_of(pool)
        query = f"session_id={pool.session}&vdi={snapshot}"
        reply = await pool.http(f"GET /export_raw_vdi?{query} HTTP/1.1\r\n\r\n".encode())
        task = reply.header("task-id")
        assert task
        await pool.finished(task)
        assert await code_of(pool.call("VDI.destroy", snapshot)) == ["VDI_IN_USE", snapshot, "destroy"]


async def test_sessions_are_looked_at_when_connecting_and_never_again(tmp_path: Path) -> None:
    async with small_pool(tmp_path, QUICK) as pool:
        snapshot = await snapshot_of(pool)
        info, *_ = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(info) as client:
            await pool.call("session.logout")
            assert await client.read(0, MiB) == bytes(MiB)
            with pytest.raises(asyncio.IncompleteReadError):
                async with nbd(info):
                    pass
            pool.simulator.restart_toolstack()
            assert await client.read(MiB, MiB) == bytes(MiB)


async def test_a_disk_that_a_guest_writes_to_is_not_exported(tmp_path: Path) -> None:
    async with small_pool(tmp_path, QUICK) as pool:
        info, *_ = await pool.call("VDI.get_nbd_info", pool.ref(pool.vdis[0]))
        with pytest.raises(asyncio.IncompleteReadError):
            async with nbd(info):
                pass
        await pool.call("VM.hard_shutdown", pool.vm)
        async with nbd(info) as client:
            assert await client.read(0, 512) == bytes(512)


async def test_a_disk_without_data_is_not_exported(tmp_path: Path) -> None:
    async with small_pool(tmp_path, QUICK) as pool:
        snapshot = await snapshot_of(pool)
        info, *_ = await pool.call("VDI.get_nbd_info", snapshot)
        await pool.call("VDI.data_destroy", snapshot)
        with pytest.raises(asyncio.IncompleteReadError):
            async with nbd(info):
                pass


async def test_a_host_that_goes_down_lets_go_of_its_disks(tmp_path: Path) -> None:
    async with small_pool(tmp_path, LINGERING) as pool:
        snapshot = await snapshot_of(pool)
        _, there = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(there) as client:
            await client.read(0, 512)
            await pool.simulator.stop_host(1)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.read(0, 512)
        assert len(await pool.call("VDI.get_nbd_info", snapshot)) == 1
        await pool.call("VDI.destroy", snapshot)
        await pool.simulator.start_host(1)
        assert len(await pool.call("VDI.get_nbd_info", pool.ref(pool.vdis[1]))) == 2


async def test_a_process_that_died_leaves_nothing_attached(tmp_path: Path) -> None:
    """The state on disk says that a control domain has the disk; nobody has it after the start."""
    async with small_pool(tmp_path, LINGERING) as pool:
        snapshot = await snapshot_of(pool)
        info, *_ = await pool.call("VDI.get_nbd_info", snapshot)
        async with nbd(info) as client:
            await client.read(0, 512)
            saved = Persistence(pool.simulator.pool.database, tmp_path / "pool.json").dump().decode()
    assert "sm/backend" in saved
    (tmp_path / "pool.json").write_text(saved)
    async with small_pool(tmp_path, LINGERING) as pool:
        again = pool.simulator.pool.database.by_ref_or_uuid("VDI", snapshot)
        assert pool.simulator.pool.database.get("VDI", again)["VBDs"] == []
        await pool.call("VDI.destroy", again)


async def test_a_failed_upload_frees_its_disk_at_once(tmp_path: Path) -> None:
    async with small_pool(tmp_path, LINGERING, power_state="Halted") as pool:
        pool.simulator.faults.arm(HttpFault("error", "import_raw_vdi"))
        target = f"/import_raw_vdi?session_id={pool.session}&vdi={pool.vdis[0]}&format=raw"
        reply = await pool.http(f"PUT {target} HTTP/1.1\r\nContent-Length: {4 * MiB}\r\n\r\n".encode())
        assert b"HTTP/1.1 500 " in reply.rest
        await pool.call("VM.destroy", pool.vm)
        await pool.call("VDI.destroy", pool.ref(pool.vdis[0]))
