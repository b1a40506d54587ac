"""Restores of VMs to a pool by XVA, in one pass or as a full and what has changed since."""

from collections.abc import Sequence
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
from mover.store import Point
from tests.pool_fixtures import MiB, Site, destroy_vm, fill_some, site

SIZES = [40 * MiB, 6 * MiB]
STRATEGIES = ["cbt", "xva"]
VIAS = ["api", "xva", "replay"]


async def backed_up(here: Site, strategy: str = "xva", runs: int = 2) -> tuple[str, list[list[bytes]]]:
    """A VM with a full and increments in the store; its reference, and its disks' contents at each point."""
    vm = here.simulator.make_vm("web", SIZES, names=["root", "data"])
    vdis = here.simulator.vdis_of(vm)
    fill_some(here, vdis)
    states = []
    for number in range(runs):
        states.append([here.content(vdi) for vdi in vdis])
        assert (await here.run(here.job(f'[backup]\nstrategy = "{strategy}"\n'))).exit_code == 0, here.events
        for vdi in vdis:
            here.simulator.guest(vdi).scatter(5, 8192, "zeros" if number % 2 else "random")
            here.simulator.guest(vdi).fill(MiB, 65536, "zeros")
    return vm, states


async def restore(here: Site, point: Point, **options: Any) -> RestoredVm:
    async with join_pool(here.job().pool) as (pool, transfers):
        return await restore_to_pool(here.store, point, pool, transfers, RestoreOptions(**options), here.events.append)


def record(here: Site, cls: str, ref: str) -> dict[str, Any]:
    return here.simulator.pool.database.get(cls, ref)


def contents_of(here: Site, vm: str) -> list[bytes]:
    return [here.content(vdi) for vdi in here.simulator.vdis_of(vm)]


def vifs_of(here: Site, vm: str) -> list[dict[str, Any]]:
    return [record(here, "VIF", vif) for vif in record(here, "VM", vm)["VIFs"]]


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_every_point_of_either_strategy_comes_back_by_every_way(tmp_path: Path, strategy: str, via: str):
    async with site(tmp_path) as here:
        _, states = await backed_up(here, strategy, runs=3)
        for point, state in zip(here.store.points(), states, strict=True):
            made = await restore(here, point, via=via)
            assert contents_of(here, made.ref) == state
            assert sorted(made.vdis) == ["0", "1"]
            fields = record(here, "VM", made.ref)
            assert (fields["is_a_template"], fields["is_a_snapshot"]) == (False, False)
            assert (fields["blocked_operations"], fields["current_operations"]) == ({}, {})
            assert fields["name_label"] == made.name
        database = here.simulator.pool.database
        assert not [task for _, task in database.items("task") if task["status"] == "pending"]


@pytest.mark.parametrize("options", [Options(), Options(tls=False, local_sr=True)], ids=["TLS", "plain"])
async def test_next_to_the_original_the_copy_has_new_macs_and_a_name_of_its_own(tmp_path: Path, options: Options):
    async with site(tmp_path, options) as here:
        vm, states = await backed_up(here)
        made = await restore(here, here.store.point("latest"))
        assert made.name.startswith("web (restored ")
        assert contents_of(here, made.ref) == states[-1]
        assert made.uuid != record(here, "VM", vm)["uuid"]
        (old,), (new,) = vifs_of(here, vm), vifs_of(here, made.ref)
        assert new["MAC"] != old["MAC"]
        assert new["network"] == old["network"]


@pytest.mark.parametrize("via", ["xva", "replay"])
async def test_where_the_original_is_gone_it_comes_back_with_its_uuid(tmp_path: Path, via: str):
    async with site(tmp_path) as here:
        vm, states = await backed_up(here)
        database = here.simulator.pool.database
        database.create("VTPM", {"VM": vm, "is_unique": False, "uuid": "6f1c3c1e-0000-4000-8000-000000000001"})
        database.set_blob("6f1c3c1e-0000-4000-8000-000000000001", "dHBtIGNvbnRlbnRz")
        database.update(
            "VM",
            vm,
            tags=["prod"],
            order=3,
            blocked_operations={"destroy": "precious"},
            NVRAM={"EFI-variables": "c2U="},
        )
        states.append(contents_of(here, vm))
        assert (await here.run(here.job('[backup]\nstrategy = "xva"\n'))).exit_code == 0
        before, (nic,) = dict(record(here, "VM", vm)), [dict(vif) for vif in vifs_of(here, vm)]
        destroy_vm(here, vm)
        made = await restore(here, here.store.point("latest"), via=via)
        after = record(here, "VM", made.ref)
        kept = (
            "uuid name_label name_description tags order blocked_operations NVRAM VCPUs_max VCPUs_at_startup platform "
            "HVM_boot_params HVM_boot_policy memory_static_max memory_dynamic_max memory_dynamic_min bios_strings "
            "domain_type actions_after_crash"
        )
        assert {name: after[name] for name in kept.split()} == {name: before[name] for name in kept.split()}
        assert after["other_config"] == before["other_config"]
        assert contents_of(here, made.ref) == states[-1]
        (new,) = vifs_of(here, made.ref)
        assert (new["MAC"], new["MTU"], new["network"]) == (nic["MAC"], nic["MTU"], nic["network"])
        drives = [record(here, "VBD", vbd) for vbd in after["VBDs"]]
        assert [(d["type"], d["empty"], d["userdevice"]) for d in sorted(drives, key=lambda d: d["userdevice"])] == [
            ("Disk", False, "0"),
            ("Disk", False, "1"),
            ("CD", True, "3"),
        ]
        (vtpm,) = [record(here, "VTPM", ref) for ref in after["VTPMs"]]
        assert database.blobs[vtpm["uuid"]] == "dHBtIGNvbnRlbnRz"


async def test_a_mac_seed_that_is_in_use_costs_the_uuid_and_nothing_else(tmp_path: Path):
    """Snapshots of a VM that is gone keep its seed, and a server then refuses to keep UUIDs."""
    async with site(tmp_path) as here:
        vm, states = await backed_up(here)
        before, (nic,) = dict(record(here, "VM", vm)), [dict(vif) for vif in vifs_of(here, vm)]
        database = here.simulator.pool.database
        for vbd in list(record(here, "VM", vm)["VBDs"]):
            database.destroy("VBD", vbd)
        for vif in list(record(here, "VM", vm)["VIFs"]):
            database.destroy("VIF", vif)
        database.destroy("VM", vm)
        made = await restore(here, here.store.point("latest"))
        assert made.uuid != before["uuid"]
        assert any(isinstance(event, Note) and "DUPLICATE_MAC_SEED" in event.message for event in here.events)
        (new,) = vifs_of(here, made.ref)
        assert new["MAC"] == nic["MAC"]
        assert record(here, "VM", made.ref)["other_config"] == before["other_config"]
        assert contents_of(here, made.ref) == states[-1]


async def test_single_disks_names_macs_and_networks_can_be_chosen(tmp_path: Path):
    async with site(tmp_path, Options(local_sr=True)) as here:
        vm, states = await backed_up(here)
        made = await restore(
            here,
            here.store.point("latest"),
            name="clone",
            disks=("data",),
            new_macs=False,
            sr="Local storage",
            networks={"Pool-wide network associated with eth0": "Internal network"},
        )
        assert made.name == "clone"
        assert contents_of(here, made.ref) == states[-1][1:]
        (old,), (new,) = vifs_of(here, vm), vifs_of(here, made.ref)
        assert new["MAC"] == old["MAC"]
        assert record(here, "network", new["network"])["name_label"] == "Internal network"
        (vdi,) = here.simulator.vdis_of(made.ref)
        where = record(here, "VDI", here.simulator.pool.database.by_uuid("VDI", vdi))["SR"]
        assert record(here, "SR", where)["name_label"] == "Local storage"


@pytest.mark.parametrize("via", VIAS)
async def test_as_a_template(tmp_path: Path, via: str):
    async with site(tmp_path) as here:
        await backed_up(here)
        made = await restore(here, here.store.point("latest"), via=via, template=True, name="golden")
        fields = record(here, "VM", made.ref)
        assert (fields["is_a_template"], fields["name_label"]) == (True, "golden")


async def test_a_replay_uploads_the_changes_as_differences(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        here.simulator.faults.arm(HttpFault("task", "import_raw_vdi"))
        with pytest.raises(MoverError, match="VDI_IO_ERROR"):
            await restore(here, here.store.point("latest"), via="replay")
        full = here.store.points()[0]
        here.simulator.faults.arm(HttpFault("task", "import_raw_vdi"))
        await restore(here, full, via="replay")  # of a full there are none


async def test_a_replay_without_its_full_says_what_to_do(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        full, newest = here.store.points()
        here.store.forget([full])
        with pytest.raises(NotFoundError, match="is not in the store any more") as caught:
            await restore(here, newest, via="replay")
        assert "--via xva" in caught.value.hint


FAILURES: Sequence[Any] = [
    HttpFault("close", "import", after=3 * MiB),
    HttpFault("task", "import"),
    HttpFault("error", "import", after=2 * MiB, code="IMPORT_ERROR_SOME_CHECKSUMS_FAILED", params=()),
    HttpFault("close", "import_raw_vdi"),
    CallFault("VM.set_name_label", "OTHER_OPERATION_IN_PROGRESS", ("VM", "x")),
]


@pytest.mark.parametrize("fault", FAILURES, ids=["cut", "fails in the end", "checksum", "delta cut", "a call"])
async def test_a_failed_restore_leaves_nothing(tmp_path: Path, fault: Any):
    async with site(tmp_path) as here:
        await backed_up(here)
        database = here.simulator.pool.database
        before = set(database.refs("VM") + database.refs("VDI") + database.refs("network"))
        here.simulator.faults.arm(fault)
        with pytest.raises(MoverError):
            await restore(here, here.store.point("latest"), via="replay")
        assert set(database.refs("VM") + database.refs("VDI") + database.refs("network")) == before
        assert not [task for _, task in database.items("task") if task["status"] == "pending"]


async def test_a_full_sr_is_said_by_its_code(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        here.simulator.faults.sr_full = True
        with pytest.raises(MoverError, match="SR_BACKEND_FAILURE_44"):
            await restore(here, here.store.point("latest"))
