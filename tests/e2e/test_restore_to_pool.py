"""Restores of VMs to a pool: configuration, identity, content, and what is left if one fails."""

from pathlib import Path
from typing import Any

import pytest

from mover.errors import MoverError, NotFoundError
from mover.events import Note
from mover.restore.options import RestoreOptions
from mover.restore.pool import RestoredVm, restore_to_pool
from mover.run import join_pool
from mover.simulator import Options
from mover.simulator.faults import CallFault, HttpFault
from tests.pool_fixtures import MiB, Site, destroy_vm, fill_some, site

SIZES = [40 * MiB, 6 * MiB]


async def backed_up(here: Site) -> tuple[str, list[bytes]]:
    """A VM with a point in the store; its reference, and its disks' content then."""
    vm = here.simulator.make_vm("web", SIZES, names=["root", "data"])
    vdis = here.simulator.vdis_of(vm)
    fill_some(here, vdis)
    contents = [here.content(vdi) for vdi in vdis]
    assert (await here.run()).exit_code == 0
    for vdi in vdis:
        here.simulator.guest(vdi).scatter(5, 8192)
    return vm, contents


async def restore(here: Site, **options: Any) -> RestoredVm:
    point = here.store.point("latest")
    async with join_pool(here.job().pool) as (pool, transfers):
        return await restore_to_pool(here.store, point, pool, transfers, RestoreOptions(**options), here.events.append)


def record(here: Site, cls: str, ref: str) -> dict[str, Any]:
    return here.simulator.pool.database.get(cls, ref)


def contents_of(here: Site, vm: str) -> list[bytes]:
    return [here.content(vdi) for vdi in here.simulator.vdis_of(vm)]


def vifs_of(here: Site, vm: str) -> list[dict[str, Any]]:
    return [record(here, "VIF", vif) for vif in record(here, "VM", vm)["VIFs"]]


def said(here: Site) -> list[tuple[str, str]]:
    """What the last restore had to say, each with its level."""
    return [(event.level, event.message) for event in here.events if isinstance(event, Note)]


@pytest.mark.parametrize("options", [Options(), Options(tls=False)], ids=["TLS", "plain"])
async def test_next_to_the_original_the_copy_has_new_macs_and_a_name_of_its_own(tmp_path: Path, options: Options):
    async with site(tmp_path, options) as here:
        vm, contents = await backed_up(here)
        made = await restore(here)
        assert made.name.startswith("web (restored ")
        assert contents_of(here, made.ref) == contents
        assert contents_of(here, vm) != contents
        (old,), (new,) = vifs_of(here, vm), vifs_of(here, made.ref)
        assert new["MAC"] != old["MAC"]
        assert new["network"] == old["network"]
        assert (
            record(here, "VM", made.ref)["other_config"]["mac_seed"]
            != record(here, "VM", vm)["other_config"]["mac_seed"]
        )


async def test_where_the_original_is_gone_its_configuration_comes_back(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        database = here.simulator.pool.database
        database.update(
            "VM",
            vm,
            tags=["backup", "prod"],
            order=3,
            blocked_operations={"destroy": "it is precious"},
            NVRAM={"EFI-variables": "c2VjcmV0"},
            VCPUs_max=7,
        )
        database.create("VTPM", {"VM": vm, "is_unique": False, "uuid": "6f1c3c1e-0000-4000-8000-000000000001"})
        database.set_blob("6f1c3c1e-0000-4000-8000-000000000001", "dHBtIGNvbnRlbnRz")
        fill_some(here, here.simulator.vdis_of(vm))
        before, (nic,) = dict(record(here, "VM", vm)), [dict(vif) for vif in vifs_of(here, vm)]
        contents = contents_of(here, vm)
        assert (await here.run()).exit_code == 0
        destroy_vm(here, vm)
        made = await restore(here)
        after = record(here, "VM", made.ref)
        kept = (
            "name_label name_description tags order blocked_operations NVRAM VCPUs_max VCPUs_at_startup platform "
            "HVM_boot_params HVM_boot_policy memory_static_max memory_dynamic_max memory_dynamic_min bios_strings "
            "other_config domain_type actions_after_crash"
        )
        assert {name: after[name] for name in kept.split()} == {name: before[name] for name in kept.split()}
        assert contents_of(here, made.ref) == contents
        (new,) = vifs_of(here, made.ref)
        assert (new["MAC"], new["MTU"], new["network"]) == (nic["MAC"], nic["MTU"], nic["network"])
        drives = [record(here, "VBD", vbd) for vbd in after["VBDs"]]
        assert [(d["type"], d["empty"], d["userdevice"]) for d in sorted(drives, key=lambda d: d["userdevice"])] == [
            ("Disk", False, "0"),
            ("CD", True, "3"),
        ]
        (vtpm,) = [record(here, "VTPM", ref) for ref in after["VTPMs"]]
        assert database.blobs[vtpm["uuid"]] == "dHBtIGNvbnRlbnRz"


@pytest.mark.parametrize("via", ["api", "xva"])
async def test_a_second_restore_of_a_lost_vm_has_addresses_of_its_own_and_says_why(tmp_path: Path, via: Any):
    async with site(tmp_path) as here:
        vm, contents = await backed_up(here)
        destroy_vm(here, vm)
        first = await restore(here)
        here.events = []
        second = await restore(here, via=via)
        ((old,), (new,)) = (vifs_of(here, made.ref) for made in (first, second))
        assert new["MAC"] != old["MAC"]
        assert (first.name, second.name.startswith("web (restored ")) == ("web", True)
        seeds = [record(here, "VM", made.ref)["other_config"]["mac_seed"] for made in (first, second)]
        assert len(set(seeds)) == 2
        assert contents_of(here, second.ref) == contents
        why = f"the VM web ({first.uuid}) on the pool has the MAC address {old['MAC']}"
        assert said(here) == [("info", f"{why}: the restored VM gets new MAC addresses")]
        here.events = []
        third = await restore(here, via=via, new_macs=False)
        assert [vif["MAC"] for vif in vifs_of(here, third.ref)] == [old["MAC"]]
        again = "the restored VM gets the saved MAC addresses all the same; run only one of the two"
        assert said(here) == [("warning", f"{why}: {again}")]


async def test_a_vm_of_the_same_mac_seed_is_a_second_one_too_and_templates_are_none(tmp_path: Path):
    async with site(tmp_path) as here:
        vm, _ = await backed_up(here)
        (nic,) = vifs_of(here, vm)
        destroy_vm(here, vm)
        first = await restore(here)
        database = here.simulator.pool.database
        (vif,) = record(here, "VM", first.ref)["VIFs"]
        database.update("VIF", vif, MAC="02:00:00:00:00:99")
        here.events = []
        second = await restore(here)
        assert [vif["MAC"] for vif in vifs_of(here, second.ref)] != [nic["MAC"]]
        why = f"the VM web ({first.uuid}) on the pool has the same MAC seed"
        assert said(here) == [("info", f"{why}: the restored VM gets new MAC addresses")]
        database.update("VIF", vif, MAC=nic["MAC"])
        database.update("VM", first.ref, is_a_template=True)
        here.events = []
        third = await restore(here)
        assert ([vif["MAC"] for vif in vifs_of(here, third.ref)], third.name) == ([nic["MAC"]], "web")
        assert said(here) == []


async def test_single_disks_names_macs_and_networks_can_be_chosen(tmp_path: Path):
    async with site(tmp_path, Options(local_sr=True)) as here:
        vm, contents = await backed_up(here)
        made = await restore(
            here,
            name="clone",
            disks=("data",),
            new_macs=False,
            sr="Local storage",
            networks={"Pool-wide network associated with eth0": "Internal network"},
        )
        assert made.name == "clone"
        assert contents_of(here, made.ref) == contents[1:]
        (old,), (new,) = vifs_of(here, vm), vifs_of(here, made.ref)
        assert new["MAC"] == old["MAC"]
        assert record(here, "network", new["network"])["name_label"] == "Internal network"
        (vdi,) = here.simulator.vdis_of(made.ref)
        where = record(here, "VDI", here.simulator.pool.database.by_uuid("VDI", vdi))["SR"]
        assert record(here, "SR", where)["name_label"] == "Local storage"


@pytest.mark.parametrize("kind", ["xvd", "hd", "fd"])
@pytest.mark.parametrize("via", ["api", "xva"])
async def test_drives_whose_positions_are_names_of_devices_come_back(tmp_path: Path, kind: str, via: Any):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [2 * MiB, 4 * MiB], names=["root", "data"])
        fill_some(here, here.simulator.vdis_of(vm))
        contents = contents_of(here, vm)
        database = here.simulator.pool.database
        names = {"0": f"{kind}a", "1": f"{kind}b", "3": f"{kind}d"}
        for vbd in record(here, "VM", vm)["VBDs"]:
            database.update("VBD", vbd, userdevice=names[record(here, "VBD", vbd)["userdevice"]])
        assert (await here.run()).exit_code == 0
        made = await restore(here, via=via)
        drives = [record(here, "VBD", vbd) for vbd in record(here, "VM", made.ref)["VBDs"]]
        assert sorted(vbd["userdevice"] for vbd in drives) == sorted(names.values())
        uuids = {position: record(here, "VDI", vdi)["uuid"] for position, vdi in made.vdis.items()}
        assert [here.content(uuids[f"{kind}{letter}"]) for letter in "ab"] == contents


async def test_disks_go_to_their_old_sr_or_one_of_its_name_or_the_default(tmp_path: Path):
    async with site(tmp_path, Options(local_sr=True)) as here:
        database = here.simulator.pool.database
        (local,) = [ref for ref, sr in database.items("SR") if sr["name_label"] == "Local storage"]
        here.simulator.make_vm("web", [2 * MiB], sr=local)
        assert (await here.run()).exit_code == 0

        async def where() -> str:
            (vdi,) = here.simulator.vdis_of((await restore(here)).ref)
            return str(record(here, "SR", record(here, "VDI", database.by_uuid("VDI", vdi))["SR"])["name_label"])

        database.update("SR", local, name_label="renamed")
        assert await where() == "renamed"
        database.update("SR", local, uuid="5f2d4c1e-0000-4000-8000-000000000001")
        assert await where() == "Shared storage"
        database.update("SR", local, name_label="Local storage")
        assert await where() == "Local storage"
        database.create("SR", {"name_label": "Local storage", "type": "ext", "content_type": "user"})
        assert await where() == "Shared storage", "of two, nobody knows which"
        with pytest.raises(NotFoundError, match="the pool has 2 SRs called Local storage") as caught:
            await restore(here, sr="Local storage")
        assert record(here, "SR", local)["uuid"] in caught.value.hint
        assert (await restore(here, sr=record(here, "SR", local)["uuid"])).vdis


@pytest.mark.parametrize(
    "options", [{"sr": "nowhere"}, {"disks": ("7",)}, {"networks": {"Pool-wide network associated with eth0": "x"}}]
)
async def test_what_does_not_exist_is_said_before_anything_is_made(tmp_path: Path, options: dict[str, Any]):
    async with site(tmp_path) as here:
        await backed_up(here)
        before = here.simulator.pool.database.refs("VM") + here.simulator.pool.database.refs("VDI")
        with pytest.raises(NotFoundError) as caught:
            await restore(here, **options)
        assert caught.value.hint
        assert here.simulator.pool.database.refs("VM") + here.simulator.pool.database.refs("VDI") == before


IO_ERROR = "the host could not read or write the disk: its /var/log/SMlog and xensource.log say why"
FULL = "the SR is full: make room, or delete snapshots there and let it coalesce"


@pytest.mark.parametrize(
    ("fault", "where", "hint"),
    [
        (CallFault("VIF.create", "MAC_INVALID", ("x",)), r"^web: VIF.create: MAC_INVALID \[x\]$", ""),
        (CallFault("VDI.create", "SR_BACKEND_FAILURE_44"), r"^web, disk 0 \(root\): VDI.create: SR_.*_44", FULL),
        (CallFault("VBD.create", "DEVICE_ALREADY_EXISTS", ("0",)), r"^web, disk 0 \(root\): VBD.create: DEV", ""),
        (HttpFault("close", "import_raw_vdi"), r"^web, disk \d \(\w+\): /import_raw_vdi: VDI_IO_ERROR", IO_ERROR),
        (HttpFault("task", "import_raw_vdi"), r"^web, disk \d \(\w+\): /import_raw_vdi: VDI_IO_ERROR", IO_ERROR),
    ],
    ids=["VIF.create", "VDI.create", "VBD.create", "the upload is cut", "the import fails in the end"],
)
async def test_a_failed_restore_leaves_nothing_and_says_of_what(tmp_path: Path, fault: Any, where: str, hint: str):
    async with site(tmp_path) as here:
        await backed_up(here)
        database = here.simulator.pool.database
        before = set(database.refs("VM") + database.refs("VDI"))
        here.simulator.faults.arm(fault)
        with pytest.raises(MoverError, match=where) as caught:
            await restore(here)
        assert caught.value.hint == hint
        assert set(database.refs("VM") + database.refs("VDI")) == before
        assert not [task for _, task in database.items("task") if task["status"] == "pending"]


async def test_a_vm_cannot_be_started_while_it_is_restored(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        blocked: list[dict[str, str]] = []
        database = here.simulator.pool.database

        def watch(event: object) -> None:
            for _, vm in database.items("VM"):
                if vm["name_label"].startswith("[restoring]"):
                    blocked.append(dict(vm["blocked_operations"]))

        point = here.store.point("latest")
        async with join_pool(here.job().pool) as (pool, transfers):
            made = await restore_to_pool(here.store, point, pool, transfers, RestoreOptions(), watch)
        assert blocked
        assert all({"start", "start_on"} <= set(operations) for operations in blocked)
        assert record(here, "VM", made.ref)["blocked_operations"] == {}
