"""VMs, disks, snapshots and change tracking of the simulated pool: what its calls do, and what they refuse."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import XENSERVER_7_6, Options
from tests.simulator_fixtures import GRANULE, MiB, RpcError, SmallPool, small_pool

NULL = "OpaqueRef:NULL"
OPTIONS = Options(tls=False, linger=0.0, data_destroy_wait=0.1)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", OPTIONS) as pool:
        yield pool


async def refused(awaitable: Any, *description: str) -> None:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert tuple(caught.value.description[: len(description)]) == description


async def disks_of(pool: SmallPool, vm: str) -> list[str]:
    """The references of a VM's disks, by position."""
    vbds = [await pool.call("VBD.get_record", vbd) for vbd in await pool.call("VM.get_VBDs", vm)]
    return [vbd["VDI"] for vbd in sorted(vbds, key=lambda vbd: vbd["userdevice"]) if vbd["type"] == "Disk"]


# -- snapshots of VMs ------------------------------------------------------------------------------------------------


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


# -- what may be done ------------------------------------------------------------------------------------------------


async def test_blocked_operations(pool: SmallPool) -> None:
    await pool.call("VM.add_to_blocked_operations", pool.vm, "snapshot", "not now")
    assert "snapshot" not in await pool.call("VM.get_allowed_operations", pool.vm)
    await refused(pool.call("VM.snapshot", pool.vm, "s"), "OPERATION_BLOCKED", pool.vm, "not now")
    await pool.call("VM.remove_from_blocked_operations", pool.vm, "snapshot")
    assert await pool.call("VM.snapshot", pool.vm, "s")


async def test_power_states(pool: SmallPool) -> None:
    await refused(pool.call("VM.start", pool.vm, False, False), "VM_BAD_POWER_STATE", pool.vm, "halted", "running")
    await refused(pool.call("VM.destroy", pool.vm), "VM_BAD_POWER_STATE", pool.vm, "halted, suspended", "running")
    await pool.call("VM.clean_shutdown", pool.vm)
    assert await pool.call("VM.get_resident_on", pool.vm) == NULL
    await pool.call("VM.start", pool.vm, False, False)
    (template,) = [ref for ref, r in (await pool.call("VM.get_all_records")).items() if r["is_default_template"]]
    await refused(pool.call("VM.start", template, False, False), "VM_IS_TEMPLATE", template, "start")


async def test_operations_on_a_disk_never_name_change_tracking(pool: SmallPool) -> None:
    vdi = await pool.call("VDI.get_record", pool.ref(pool.vdis[0]))
    assert {"snapshot", "copy", "clone"} <= set(vdi["allowed_operations"])
    assert not {"enable_cbt", "disable_cbt", "data_destroy", "list_changed_blocks"} & set(vdi["allowed_operations"])
    repository = await pool.call("SR.get_record", vdi["SR"])
    assert {"vdi_enable_cbt", "vdi_list_changed_blocks"} <= set(repository["allowed_operations"])


# -- making VMs ------------------------------------------------------------------------------------------------------


async def new_vm(pool: SmallPool, **changes: Any) -> str:
    record = await pool.call("VM.get_record", pool.vm)
    vm: str = await pool.call("VM.create", record | {"power_state": "Halted"} | changes)
    return vm


async def test_a_new_vm(pool: SmallPool) -> None:
    blocked = {"blocked_operations": {"start": "no"}}
    vm = await new_vm(pool, name_label="new", is_a_template=False, snapshot_of=pool.vm, **blocked)
    record, old = await pool.call("VM.get_record", vm), await pool.call("VM.get_record", pool.vm)
    assert record["uuid"] != old["uuid"]
    assert (record["name_label"], record["snapshot_of"], record["blocked_operations"]) == ("new", NULL, {})
    assert (record["VBDs"], record["VIFs"], record["bios_strings"], record["domain_type"]) == ([], [], {}, "hvm")
    assert record["NVRAM"] == old["NVRAM"]


async def test_mandatory_fields_are(pool: SmallPool) -> None:
    record = await pool.call("VM.get_record", pool.vm)
    del record["platform"]
    with pytest.raises(RpcError, match=r"INTERNAL_ERROR.*Dispatcher_FieldNotFound.*platform"):
        await pool.call("VM.create", record)


async def test_a_mac_seed_is_added_and_macs_follow_from_it(pool: SmallPool) -> None:
    seeded = await new_vm(pool, other_config={})
    seed = (await pool.call("VM.get_other_config", seeded))["mac_seed"]
    same = await new_vm(pool, other_config={"mac_seed": seed})
    (network,) = [ref for ref, r in (await pool.call("network.get_all_records")).items() if r["bridge"] == "xenbr0"]
    macs: dict[str, list[str]] = {}
    for vm in (seeded, same):
        for device in ("0", "1"):
            vif = await pool.call("VIF.create", vif_record(vm, network, device))
            record = await pool.call("VIF.get_record", vif)
            assert record["MAC_autogenerated"]
            assert int(record["MAC"][:2], 16) & 3 == 2
            macs.setdefault(device, []).append(record["MAC"])
    assert macs["0"][0] == macs["0"][1] != macs["1"][0] == macs["1"][1]
    await pool.call("VM.set_other_config", seeded, {})
    await refused(pool.call("VIF.create", vif_record(seeded, network, "2")), "MAC_INVALID", "")


def vif_record(vm: str, network: str, device: str, mac: str = "") -> dict[str, Any]:
    record = {"VM": vm, "network": network, "device": device, "MAC": mac, "MTU": 1500}
    return record | {"other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}


async def test_interfaces_that_are_refused(pool: SmallPool) -> None:
    network = (await pool.call("network.get_all"))[0]
    await refused(pool.call("VIF.create", vif_record(pool.vm, network, "1", "nonsense")), "MAC_INVALID", "nonsense")
    await refused(pool.call("VIF.create", vif_record(pool.vm, network, "0")), "DEVICE_ALREADY_EXISTS", "0")
    await refused(pool.call("VIF.create", vif_record(pool.vm, "OpaqueRef:x", "1")), "HANDLE_INVALID", "network")
    assert await pool.call("VIF.create", vif_record(pool.vm, network, "1", "02:00:00:00:00:01"))


def vbd_record(vm: str, vdi: str, **changes: Any) -> dict[str, Any]:
    record = {"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": False, "mode": "RW", "type": "Disk"}
    record |= {"empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    return record | changes


async def test_block_devices(pool: SmallPool) -> None:
    vm = await new_vm(pool)
    vdi = pool.ref(pool.vdis[0])
    vbd = await pool.call("VBD.create", vbd_record(vm, vdi))
    assert await pool.call("VBD.get_userdevice", vbd) == "0"
    assert await pool.call("VM.get_allowed_VBD_devices", vm) != ["0"]
    taken = vbd_record(vm, vdi, userdevice="0")
    await refused(pool.call("VBD.create", taken), "DEVICE_ALREADY_EXISTS", "0")
    await refused(pool.call("VBD.create", vbd_record(vm, vdi, userdevice="moon")), "INVALID_DEVICE", "moon")
    await refused(pool.call("VBD.create", vbd_record(vm, vdi, type="CD")), "VBD_CDS_MUST_BE_READONLY")
    await refused(pool.call("VBD.create", vbd_record(vm, NULL, empty=True)), "VBD_NOT_REMOVABLE_MEDIA")
    cd = await pool.call("VBD.create", vbd_record(vm, NULL, empty=True, type="CD", mode="RO", userdevice="3"))
    assert await pool.call("VBD.get_VDI", cd) == NULL
    await refused(pool.call("VM.start", vm, False, False), "VDI_IN_USE", vdi)
    await pool.call("VBD.destroy", vbd)


async def test_bios_strings_are_set_once(pool: SmallPool) -> None:
    vm = await new_vm(pool)
    await refused(pool.call("VM.set_bios_strings", vm, {"colour": "blue"}), "INVALID_VALUE", "colour")
    await pool.call("VM.set_bios_strings", vm, {"bios-vendor": "Somebody"})
    await refused(pool.call("VM.set_bios_strings", vm, {"bios-vendor": "x"}), "VM_BIOS_STRINGS_ALREADY_SET")


async def test_memory_limits_have_an_order(pool: SmallPool) -> None:
    vm = await new_vm(pool)
    await pool.call("VM.set_memory_limits", vm, MiB, 8 * MiB, 2 * MiB, 4 * MiB)
    assert await pool.call("VM.get_memory_dynamic_max", vm) == 4 * MiB
    wrong = ("VM.set_memory_limits", vm, MiB, 2 * MiB, 2 * MiB, 4 * MiB)
    await refused(pool.call(*wrong), "MEMORY_CONSTRAINT_VIOLATION")


async def test_one_vtpm_with_contents(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", OPTIONS) as pool:
        vm = await new_vm(pool)
        vtpm = await pool.call("VTPM.create", vm, False)
        await refused(pool.call("VTPM.create", vm, False), "VTPM_MAX_AMOUNT_REACHED", "1")
        await refused(pool.call("VTPM.create", pool.vm, False), "VM_BAD_POWER_STATE", pool.vm)
        await pool.call("VTPM.set_contents", vtpm, "c2VjcmV0")
        snapshot = await pool.call("VM.snapshot", vm, "s")
        (copy,) = await pool.call("VM.get_VTPMs", snapshot)
        assert await pool.call("VTPM.get_contents", copy) == "c2VjcmV0"
    restricted = Options(tls=False, restrictions={"restrict_vtpm": "true"})
    async with small_pool(tmp_path / "restricted", restricted) as pool:
        vm = await new_vm(pool)
        await refused(pool.call("VTPM.create", vm, False), "FEATURE_RESTRICTED", "restrict_vtpm")


# -- disks -----------------------------------------------------------------------------------------------------------


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
