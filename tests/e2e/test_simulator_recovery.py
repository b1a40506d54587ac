"""A pool that comes back after its process died at a bad moment."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mover.simulator import Options
from tests.simulator_fixtures import RpcError, small_pool

PLAIN = Options(tls=False, linger=0.0)


async def test_nothing_is_busy_with_what_the_process_took_with_it(tmp_path: Path) -> None:
    async with small_pool(tmp_path, PLAIN) as pool:
        vm, vdi = pool.vm, pool.ref(pool.vdis[0])
    saved = json.loads((tmp_path / "pool.json").read_text())
    saved["tables"]["VM"][vm]["current_operations"] = {"OpaqueRef:gone": "snapshot"}
    saved["tables"]["VDI"][vdi]["current_operations"] = {"OpaqueRef:gone": "snapshot"}
    (tmp_path / "pool.json").write_text(json.dumps(saved))
    async with small_pool(tmp_path, PLAIN) as pool, asyncio.timeout(30):
        assert await pool.call("VM.get_current_operations", vm) == {}
        assert "snapshot" in await pool.call("VM.get_allowed_operations", vm)
        await pool.call("VM.snapshot", vm, "again")
        await pool.call("VDI.snapshot", vdi)


async def test_a_scan_forgets_disks_whose_content_is_gone(tmp_path: Path) -> None:
    """As after a death between the deletion of the content and that of the record."""
    async with small_pool(tmp_path, PLAIN) as pool:
        snapshot = await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))
        record = await pool.call("VDI.get_record", snapshot)
        pool.simulator.disks.delete(record["uuid"])
        with pytest.raises(RpcError) as caught:
            await pool.call("VDI.destroy", snapshot)
        assert caught.value.description[0] == "SR_BACKEND_FAILURE_46"
        await pool.call("SR.scan", record["SR"])
        with pytest.raises(RpcError) as caught:
            await pool.call("VDI.get_record", snapshot)
        assert caught.value.description == ["HANDLE_INVALID", "VDI", snapshot]
        assert snapshot not in await pool.call("SR.get_VDIs", record["SR"])
        assert pool.ref(pool.vdis[0]) in await pool.call("SR.get_VDIs", record["SR"])


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), float("-inf")])
async def test_a_time_that_is_none_is_refused(tmp_path: Path, timeout: float) -> None:
    """Python's JSON writes and reads what JSON has no word for."""
    async with small_pool(tmp_path, PLAIN) as pool, asyncio.timeout(30):
        with pytest.raises(RpcError) as caught:
            await pool.call("event.from", ["task"], "99999999999999999999,99999999999999999999", timeout)
        assert caught.value.description == ["FIELD_TYPE_ERROR", "timeout"]
