"""Snapshots of VMs of the simulated pool: what they have, and when they are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mover.simulator import XENSERVER_7_6, Options
from tests.simulator_fixtures import MiB, RpcError, SmallPool, disks_of, refused, small_pool

NULL = "OpaqueRef:NULL"
OPTIONS = Options(tls=False, linger=0.0, data_destroy_wait=0.1)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", OPTIONS) as pool:
        yield pool


async def test_the_record_of_a_snapshot(pool: SmallPool) -> None:
    await pool.call("VM.add_to_other_config", pool.vm, "own", "key")
    await pool.call("VM.add_to_blocked_operations", pool.vm, "destroy", "why")
    snapshot = await pool.call("VM.snapshot", pool.vm, "name of it")
    vm, record = await pool.call("VM.get_record", pool.vm), await pool.call("VM.get_record", snapshot)
    assert record["name_label"] == "name of it"
    assert (record["is_a_template"], record["is_a_snapshot"], record["is_default_template"]) == (True, True, False)
    assert (record["snapshot_of"], record["power_state"], record["resident_on"]) == (pool.vm, "Halted", NULL)
    assert record["snapshot_info"] == {
        "power-state-at-snapshot": "Running",
        "disk-snapshot-type": "crash_consistent",
    }
    assert record["blocked_operations"] == {}
    assert record["other_config"] == vm["other_config"]
    assert record["snapshot_metadata"]
    for name in ("NVRAM", "bios_strings", "platform", "tags", "HVM_boot_params", "memory_static_max"):
        assert record[name] == vm[name]
    assert (vm["snapshots"], vm["parent"], record["children"]) == ([snapshot], snapshot, [pool.vm])
    allowed = {"revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export"}
    assert set(record["allowed_operations"]) == allowed


async def test_the_devices_of_a_snapshot(pool: SmallPool) -> None:
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    vbds = [await pool.call("VBD.get_record", vbd) for vbd in await pool.call("VM.get_VBDs", snapshot)]
    assert sorted((vbd["userdevice"], vbd["type"], vbd["empty"]) for vbd in vbds) == [
        ("0", "Disk", False),
        ("1", "Disk", False),
        ("3", "CD", True),
    ]
    assert not any(vbd["currently_attached"] for vbd in vbds)
    assert all("owner" in vbd["other_config"] for vbd in vbds if vbd["type"] == "Disk")
    (vif,) = await pool.call("VM.get_VIFs", snapshot)
    (original,) = await pool.call("VM.get_VIFs", pool.vm)
    assert await pool.call("VIF.get_MAC", vif) == await pool.call("VIF.get_MAC", original)
    for copy, live in zip(await disks_of(pool, snapshot), await disks_of(pool, pool.vm), strict=True):
        record = await pool.call("VDI.get_record", copy)
        assert (record["is_a_snapshot"], record["snapshot_of"]) == (True, live)
        assert record["virtual_size"] == await pool.call("VDI.get_virtual_size", live)
        assert record["uuid"] == record["location"]


async def test_disks_can_be_left_out(pool: SmallPool) -> None:
    first, second = await disks_of(pool, pool.vm)
    snapshot = await pool.call("VM.snapshot", pool.vm, "s", [first])
    (copy,) = await disks_of(pool, snapshot)
    assert await pool.call("VDI.get_snapshot_of", copy) == second


async def test_a_snapshot_that_fails_leaves_nothing(pool: SmallPool) -> None:
    _, second = await disks_of(pool, pool.vm)
    await pool.call("VDI.set_sharable", second, True)
    before = await pool.call("VDI.get_all"), await pool.call("VM.get_all")
    await refused(pool.call("VM.snapshot", pool.vm, "s"), "VDI_IS_SHARABLE", second)
    assert before == (await pool.call("VDI.get_all"), await pool.call("VM.get_all"))


async def test_a_full_repository(pool: SmallPool) -> None:
    pool.simulator.faults.arm_json('[{"type": "sr_full"}]')
    await refused(pool.call("VM.snapshot", pool.vm, "s"), "SR_BACKEND_FAILURE_44", "", "There is insufficient space")


async def test_destroying_a_snapshot_leaves_its_disks(pool: SmallPool) -> None:
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    copies = await disks_of(pool, snapshot)
    vbds = await pool.call("VM.get_VBDs", snapshot)
    await pool.call("VM.destroy", snapshot)
    assert (await pool.call("VM.get_parent", pool.vm), await pool.call("VM.get_snapshots", pool.vm)) == (NULL, [])
    for copy in copies:
        assert await pool.call("VDI.get_VBDs", copy) == []
        await pool.call("VDI.destroy", copy)
        await refused(pool.call("VDI.get_record", copy), "HANDLE_INVALID", "VDI", copy)
    for vbd in vbds:
        await refused(pool.call("VBD.get_record", vbd), "HANDLE_INVALID", "VBD", vbd)


async def test_a_snapshot_may_stop_being_a_template(pool: SmallPool) -> None:
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    await pool.call("VM.set_is_a_template", snapshot, False)
    assert await pool.call("VM.get_is_a_snapshot", snapshot)
    await refused(pool.call("VM.start", snapshot, False, False), "VM_IS_SNAPSHOT", snapshot, "start")


async def test_a_revert_changes_the_identity_of_disks(pool: SmallPool) -> None:
    guest = pool.simulator.guest(pool.vdis[0])
    guest.write(0, b"before")
    first = await pool.call("VM.snapshot", pool.vm, "1")
    guest.write(0, b"after!")
    second = await pool.call("VM.snapshot", pool.vm, "2")
    await pool.call("VM.revert", first)
    now = pool.simulator.vdis_of(pool.vm)
    assert not set(now) & set(pool.vdis)
    assert pool.simulator.disks.read(now[0], 0, 6) == b"before"
    for snapshot in (first, second):
        copies = await disks_of(pool, snapshot)
        assert [await pool.call("VDI.get_snapshot_of", copy) for copy in copies] == [pool.ref(uuid) for uuid in now]
    assert await pool.call("VM.get_power_state", pool.vm) == "Halted"


async def test_a_checkpoint_needs_memory(pool: SmallPool) -> None:
    snapshot = await pool.call("VM.checkpoint", pool.vm, "c")
    record = await pool.call("VM.get_record", snapshot)
    assert record["power_state"] == "Suspended"
    assert await pool.call("VDI.get_type", record["suspend_VDI"]) == "suspend"
    await pool.call("VM.hard_shutdown", pool.vm)
    await refused(pool.call("VM.checkpoint", pool.vm, "c"), "VM_BAD_POWER_STATE", pool.vm)


async def test_a_chain_has_its_limit(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", OPTIONS, sizes=(2 * MiB,)) as pool:
        with pytest.raises(RpcError, match="SR_BACKEND_FAILURE_109"):
            for number in range(31):
                pool.simulator.guest(pool.vdis[0]).write(0, b"%d" % number)
                await pool.call("VDI.snapshot", pool.ref(pool.vdis[0]))


async def test_quiesced_snapshots_of_old_releases_need_an_agent(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, release=XENSERVER_7_6)) as pool:
        database = pool.simulator.pool.database
        metrics = database.create("VM_guest_metrics", {"other": {"feature-snapshot": "1"}})
        database.update("VM", pool.vm, guest_metrics=metrics)
        snapshot = await pool.call("VM.snapshot_with_quiesce", pool.vm, "s")
        info = await pool.call("VM.get_snapshot_info", snapshot)
        assert info["disk-snapshot-type"] == "quiesced"
