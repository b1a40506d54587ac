"""Disks of the simulated pool and change tracking: what the calls do, and what they refuse."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options
from tests.simulator_fixtures import GRANULE, MiB, SmallPool, disks_of, refused, small_pool, vbd_record

NULL = "OpaqueRef:NULL"
OPTIONS = Options(tls=False, linger=0.0, data_destroy_wait=0.1)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", OPTIONS) as pool:
        yield pool


async def new_disk(pool: SmallPool, size: int, **changes: Any) -> str:
    record = await pool.call("VDI.get_record", pool.ref(pool.vdis[0]))
    vdi: str = await pool.call("VDI.create", record | {"virtual_size": size} | changes)
    return vdi


async def test_sizes_are_rounded_up_to_2_mib(pool: SmallPool) -> None:
    for asked, given in ((1, 2), (2 * MiB, 2), (2 * MiB + 1, 4)):
        assert await pool.call("VDI.get_virtual_size", await new_disk(pool, asked)) == given * MiB
    await refused(new_disk(pool, (2040 << 30) + 1), "SR_BACKEND_FAILURE_79")
    await refused(new_disk(pool, MiB, type="cbt_metadata"), "VDI_INCOMPATIBLE_TYPE")


async def test_disks_grow_only_while_nobody_has_them(pool: SmallPool) -> None:
    live = pool.ref(pool.vdis[0])
    await refused(pool.call("VDI.resize", live, 8 * MiB), "VDI_IN_USE", live, "resize")
    vdi = await new_disk(pool, 4 * MiB)
    await pool.call("VDI.resize", vdi, 5 * MiB)
    assert await pool.call("VDI.get_virtual_size", vdi) == 6 * MiB
    await refused(pool.call("VDI.resize", vdi, 2 * MiB), "SR_BACKEND_FAILURE_79")


async def test_a_disk_in_use_is_not_destroyed(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    await refused(pool.call("VDI.destroy", vdi), "VDI_IN_USE", vdi, "destroy")
    await pool.call("VM.hard_shutdown", pool.vm)
    await pool.call("VDI.destroy", vdi)
    assert len(await disks_of(pool, pool.vm)) == 1


async def test_a_clone_has_the_content_and_no_log(pool: SmallPool) -> None:
    pool.simulator.guest(pool.vdis[0]).write(0, b"content")
    vdi = pool.ref(pool.vdis[0])
    await pool.call("VDI.enable_cbt", vdi)
    clone = await pool.call("VDI.get_record", await pool.call("VDI.clone", vdi))
    assert (clone["cbt_enabled"], clone["is_a_snapshot"], clone["snapshot_of"]) == (False, False, NULL)
    assert pool.simulator.disks.read(clone["uuid"], 0, 7) == b"content"


# -- change tracking -------------------------------------------------------------------------------------------------


async def test_enabling_is_idempotent_and_inherited(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    before = await pool.call("VDI.snapshot", vdi)
    for _ in range(2):
        await pool.call("VDI.enable_cbt", vdi)
    after = await pool.call("VDI.snapshot", vdi)
    enabled = [await pool.call("VDI.get_cbt_enabled", disk) for disk in (vdi, before, after)]
    assert enabled == [True, False, True]
    await refused(pool.call("VDI.enable_cbt", after), "OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {after}")
    await refused(pool.call("VDI.set_on_boot", vdi, "reset"), "VDI_CBT_ENABLED", vdi)
    for _ in range(2):
        await pool.call("VDI.disable_cbt", vdi)
    assert not await pool.call("VDI.get_cbt_enabled", vdi)
    assert await pool.call("VDI.get_cbt_enabled", after)


async def test_preconditions_of_change_tracking(pool: SmallPool) -> None:
    suspend = await new_disk(pool, MiB, type="suspend")
    await refused(pool.call("VDI.enable_cbt", suspend), "VDI_INCOMPATIBLE_TYPE", suspend, "suspend")
    reset = await new_disk(pool, MiB)
    await pool.call("VDI.set_on_boot", reset, "reset")
    await refused(pool.call("VDI.enable_cbt", reset), "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")


async def test_a_licence_may_forbid_it(tmp_path: Path) -> None:
    restricted = Options(tls=False, restrictions={"restrict_cbt": "true"})
    async with small_pool(tmp_path / "pool", restricted) as pool:
        vdi = pool.ref(pool.vdis[0])
        await refused(pool.call("VDI.enable_cbt", vdi), "LICENCE_RESTRICTION", "CBT")
        await pool.call("VDI.disable_cbt", vdi)


async def test_a_driver_may_not_have_it(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, sr_without_cbt=True)) as pool:
        vdi = pool.ref(pool.vdis[0])
        repository = await pool.call("VDI.get_SR", vdi)
        await refused(pool.call("VDI.enable_cbt", vdi), "SR_OPERATION_NOT_SUPPORTED", repository)
        assert "vdi_enable_cbt" not in await pool.call("SR.get_allowed_operations", repository)


async def test_changed_blocks_from_older_to_newer(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    guest = pool.simulator.guest(pool.vdis[0])
    await pool.call("VDI.enable_cbt", vdi)
    older = await pool.call("VDI.snapshot", vdi)
    guest.write(0, b"x")
    guest.write(9 * GRANULE - 1, b"xy")
    newer = await pool.call("VDI.snapshot", vdi)
    bitmap = base64.b64decode(await pool.call("VDI.list_changed_blocks", older, newer))
    assert bitmap == bytes([0b10000000, 0b11000000]) + bytes(6)
    text = await pool.task("VDI.list_changed_blocks", older, newer)
    assert text == f"<value>{base64.b64encode(bitmap).decode()}</value>"
    reversed_ = pool.call("VDI.list_changed_blocks", newer, older)
    unrelated = "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are unrelated]"
    await refused(reversed_, "SR_BACKEND_FAILURE_460", "", unrelated, "")
    await refused(pool.call("VDI.list_changed_blocks", older, older), "SR_BACKEND_FAILURE_460")
    await refused(pool.call("VDI.list_changed_blocks", older, vdi), "VDI_IN_USE", vdi, "list_changed_blocks")


async def test_data_can_go_and_the_log_stays(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    await refused(pool.call("VDI.data_destroy", vdi), "OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {vdi}")
    untracked = await pool.call("VDI.snapshot", vdi)
    await refused(pool.call("VDI.data_destroy", untracked), "VDI_NO_CBT_METADATA", untracked)
    await pool.call("VDI.enable_cbt", vdi)
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    older, _ = await disks_of(pool, snapshot)
    await refused(pool.call("VDI.data_destroy", older), "VDI_IN_USE", older, "data_destroy")
    await pool.call("VM.destroy", snapshot)
    for _ in range(2):
        await pool.call("VDI.data_destroy", older)
    record = await pool.call("VDI.get_record", older)
    assert (record["type"], record["cbt_enabled"]) == ("cbt_metadata", True)
    assert record["other_config"]["content_id"] == "/No content: this is a cbt_metadata VDI/"
    for method in ("VDI.snapshot", "VDI.clone", "VDI.get_nbd_info"):
        await refused(pool.call(method, older), "VDI_INCOMPATIBLE_TYPE", older, "cbt_metadata")
    await refused(pool.call("VBD.create", vbd_record(pool.vm, older)), "VDI_INCOMPATIBLE_TYPE", older)
    pool.simulator.guest(pool.vdis[0]).write(GRANULE, b"x")
    newer = await pool.call("VDI.snapshot", vdi)
    bitmap = base64.b64decode(await pool.call("VDI.list_changed_blocks", older, newer))
    assert bitmap[0] == 0b01000000
    await pool.call("VDI.destroy", older)


async def test_data_destroy_waits_for_the_disk_to_be_free(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, data_destroy_wait=30.0)) as pool:
        await pool.call("VDI.enable_cbt", pool.ref(pool.vdis[0]))
        snapshot = await pool.call("VM.snapshot", pool.vm, "s")
        older, _ = await disks_of(pool, snapshot)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(pool.task("VDI.data_destroy", older))
            await pool.call("VM.destroy", snapshot)
            await waiting
        assert await pool.call("VDI.get_type", older) == "cbt_metadata"


async def test_a_crash_ends_tracking_with_a_message(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    await pool.call("VDI.enable_cbt", vdi)
    pool.simulator.crash_disk(pool.vdis[0])
    assert not await pool.call("VDI.get_cbt_enabled", vdi)
    (message,) = (await pool.call("message.get_all_records")).values()
    expected = ("VDI_CBT_METADATA_INCONSISTENT", "VDI", pool.vdis[0])
    assert (message["name"], message["cls"], message["obj_uuid"]) == expected


# -- where to read ---------------------------------------------------------------------------------------------------


async def test_nbd_info_has_an_entry_for_each_host(pool: SmallPool) -> None:
    entries = await pool.call("VDI.get_nbd_info", pool.ref(pool.vdis[0]))
    hosts = pool.simulator.pool.hosts
    assert [entry["address"] for entry in entries] == [host.address for host in hosts]
    for entry, host in zip(entries, hosts, strict=True):
        assert entry["exportname"] == f"/{pool.vdis[0]}?session_id={pool.session}"
        assert (entry["port"], entry["cert"]) == (host.nbd_port, host.certificate.pem)
        assert entry["subject"] == host.certificate.subject


async def test_purposes_of_networks(pool: SmallPool) -> None:
    records = await pool.call("network.get_all_records")
    (network,) = [ref for ref, record in records.items() if record["purpose"]]
    (other,) = [ref for ref, record in records.items() if not record["purpose"]]
    mixing = ("NETWORK_INCOMPATIBLE_PURPOSES", "insecure_nbd", "nbd")
    await refused(pool.call("network.add_purpose", other, "insecure_nbd"), *mixing)
    await pool.call("network.remove_purpose", network, "nbd")
    assert await pool.call("VDI.get_nbd_info", pool.ref(pool.vdis[0])) == []
    await pool.call("network.add_purpose", network, "insecure_nbd")
    assert len(await pool.call("VDI.get_nbd_info", pool.ref(pool.vdis[0]))) == 2


async def test_a_repository_that_one_host_sees(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, local_sr=True)) as pool:
        (local,) = await pool.call("SR.get_by_name_label", "Local storage")
        vdi = await new_disk(pool, MiB, SR=local)
        assert [entry["address"] for entry in await pool.call("VDI.get_nbd_info", vdi)] == ["127.0.0.2"]
