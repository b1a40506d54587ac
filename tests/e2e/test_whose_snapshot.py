"""Whose snapshot it is. The pool copies other_config whenever it snapshots or clones, so tags alone do not tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mover.explain import explain
from mover.run import join_pool
from mover.simulator.values import Record
from protocol.xapi import Pool
from tests.pool_fixtures import MiB, Site, fill_some, site

SELF = "mover:self"
METADATA = '[backup]\nkeep-snapshot = "metadata"\n'


@asynccontextmanager
async def user(here: Site) -> AsyncIterator[Pool]:
    """Somebody else's session with the pool."""
    async with join_pool(here.job().pool) as (pool, _):
        yield pool


async def backed_up(here: Site, more: str = "") -> str:
    """A VM `web` (a ref) with one restore point and, by default, its snapshot."""
    vm = here.simulator.make_vm("web", [4 * MiB, 2 * MiB])
    fill_some(here, here.simulator.vdis_of(vm))
    assert (await here.run(web(here, more))).exit_code == 0
    return vm


def web(here: Site, more: str = ""):
    """The job, whatever other VMs there are."""
    return here.job(more, selector='name = "web"')


def kept(here: Site) -> str:
    """The snapshot VM (a ref) that runs have left."""
    (ref,) = [ref for ref, vm in here.simulator.pool.database.items("VM") if vm["is_a_snapshot"] and named(here, vm)]
    return ref


def named(here: Site, vm: Record) -> bool:
    return bool(vm["name_label"].startswith(f"mover test {here.store.config.store_id[:8]} "))


def disks(here: Site, vm: str) -> list[str]:
    """The VDIs (refs) in the drives of a VM."""
    database = here.simulator.pool.database
    drives = [database.get("VBD", vbd) for vbd in database.get("VM", vm)["VBDs"]]
    return [drive["VDI"] for drive in drives if drive["type"] == "Disk"]


def stands(here: Site, vm: str, vdis: list[str]) -> bool:
    """Whether the VM and its disks are all there."""
    database = here.simulator.pool.database
    return database.exists("VM", vm) and all(database.exists("VDI", vdi) for vdi in vdis)


def as_tagged_by_an_earlier_version(here: Site) -> None:
    """Those said whose a snapshot is, but not which object they said it of."""
    database = here.simulator.pool.database
    for kind in ("VM", "VDI"):
        for ref, record in list(database.items(kind)):
            tags = {key: value for key, value in record["other_config"].items() if key != SELF}
            database.update(kind, ref, other_config=tags)


@pytest.mark.parametrize("earlier", [False, True], ids=["tagged now", "tagged by an earlier version"])
async def test_a_users_snapshot_of_a_vm_that_was_reverted_to_ours_stays(tmp_path: Path, earlier: bool):
    async with site(tmp_path) as here:
        vm = await backed_up(here)
        if earlier:
            as_tagged_by_an_earlier_version(here)
        async with user(here) as pool:
            await pool.run("VM.revert", kept(here))
            theirs = await pool.run("VM.snapshot", vm, "before the upgrade")
            alone = await pool.run("VDI.snapshot", disks(here, vm)[0])
        database = here.simulator.pool.database
        vdis = disks(here, theirs)
        for vdi in (*vdis, alone):
            assert database.get("VDI", vdi)["other_config"]["mover:job"] == "test", "the pool copies our tags"
        (told,) = await explain(web(here))
        whose = {snapshot.uuid: (snapshot.owner, snapshot.fate) for snapshot in told.snapshots}
        nobody = ("nobody says: a person, or a schedule of the pool", "left alone")
        assert whose[database.get("VM", theirs)["uuid"]] == nobody
        assert whose[database.get("VDI", alone)["uuid"]] == nobody
        for mode in ("full", "incremental"):
            now = [here.content(vdi) for vdi in here.simulator.vdis_of(vm)]
            assert (await here.run(web(here))).exit_code == 0
            assert {plan.mode for plan in here.planned()} == {mode}
            assert stands(here, theirs, [*vdis, alone])
            assert await here.restored(here.store.points()[-1]) == now
            here.simulator.guest(here.simulator.vdis_of(vm)[0]).scatter(3, 4096)
        ours = {disk.snapshot_uuid for disk in here.store.points()[-1].record.disks}
        assert set(here.snapshots()) == ours | {database.get("VDI", vdi)["uuid"] for vdi in (*vdis, alone)}


@pytest.mark.parametrize("earlier", [False, True], ids=["tagged now", "tagged by an earlier version"])
async def test_a_users_snapshot_of_a_clone_of_ours_stays(tmp_path: Path, earlier: bool):
    async with site(tmp_path) as here:
        await backed_up(here)
        if earlier:
            as_tagged_by_an_earlier_version(here)
        async with user(here) as pool:
            clone = await pool.run("VM.clone", kept(here), "a clone")
            await pool.call("VM.set_is_a_template", clone, False)
            theirs = await pool.run("VM.snapshot", clone, "of the clone")
        vdis = disks(here, theirs)
        record = here.simulator.pool.database.get("VM", theirs)
        assert record["other_config"]["mover:job"] == "test", "the pool copies our tags"
        for _ in range(2):
            assert (await here.run(web(here))).exit_code == 0
            assert stands(here, theirs, vdis)
            assert stands(here, clone, disks(here, clone))


async def test_a_clone_of_our_snapshot_is_backed_up_like_any_other_vm(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        async with user(here) as pool:
            clone = await pool.run("VM.clone", kept(here), "web")
            await pool.call("VM.set_is_a_template", clone, False)
        for mode in ("full", "incremental"):
            assert (await here.run(web(here))).exit_code == 0
            assert [plan.mode for plan in here.planned()].count(mode) >= 2
        assert len(here.snapshots()) == 4, "the newest of each"


async def test_each_snapshot_says_which_object_its_tags_are_of(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        database = here.simulator.pool.database
        made = [database.get("VM", kept(here)), *(database.get("VDI", vdi) for vdi in disks(here, kept(here)))]
        assert len(made) == 3
        assert all(record["other_config"][SELF] == record["uuid"] for record in made)


@pytest.mark.parametrize("more", ["", METADATA], ids=["data", "metadata"])
async def test_what_an_earlier_version_has_tagged_is_built_on_and_removed(tmp_path: Path, more: str):
    async with site(tmp_path) as here:
        await backed_up(here, more)
        as_tagged_by_an_earlier_version(here)
        (told,) = await explain(web(here))
        assert {(snapshot.owner, snapshot.fate) for snapshot in told.snapshots} == {
            ("this job", "base of the next incremental")
        }
        assert (await here.run(web(here, more))).exit_code == 0
        assert {plan.mode for plan in here.planned()} == {"incremental"}
        newest = here.store.points()[-1]
        assert sorted(here.snapshots()) == sorted(disk.snapshot_uuid for disk in newest.record.disks)


async def test_what_a_run_left_that_was_killed_before_it_tagged_is_removed(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = await backed_up(here)
        other = here.simulator.make_vm("other", [2 * MiB])
        name = here.simulator.pool.database.get("VM", kept(here))["name_label"]
        async with user(here) as pool:
            left = await pool.run("VM.snapshot", vm, f"{name[:-1]}0")
            # The tags that it inherits if the VM is a clone of a snapshot of ours.
            await pool.call("VM.set_other_config", left, {"mover:job": "test", SELF: "another one's"})
            of_another_vm = await pool.run("VM.snapshot", other, name)
        vdis = disks(here, left)
        assert (await here.run(web(here))).exit_code == 0
        database = here.simulator.pool.database
        assert not database.exists("VM", left)
        assert not any(database.exists("VDI", vdi) for vdi in vdis)
        assert stands(here, of_another_vm, disks(here, of_another_vm))


async def test_a_disk_of_ours_that_somebody_has_attached_stays_as_long_as_that(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        helper = here.simulator.make_vm("helper", [2 * MiB], power_state="Halted")
        database = here.simulator.pool.database
        left = kept(here)
        vdis = disks(here, left)
        drive = {"VM": helper, "VDI": vdis[0], "userdevice": "5", "mode": "RO", "type": "Disk", "empty": False}
        vbd = database.create("VBD", drive)
        # A full, so that nothing is built on what is attached.
        assert (await here.run(web(here), full=True)).exit_code == 0
        assert database.exists("VDI", vdis[0])
        assert database.get("VBD", vbd)["VDI"] == vdis[0]
        assert database.exists("VM", left), "a snapshot VM stays as long as one of its disks does"
        assert not database.exists("VDI", vdis[1])
        (told,) = await explain(web(here))
        fates = {snapshot.uuid: (snapshot.owner, snapshot.fate) for snapshot in told.snapshots}
        assert fates[database.get("VM", left)["uuid"]] == ("this job", "stays as long as another VM uses it")
        database.destroy("VBD", vbd)
        assert (await here.run(web(here))).exit_code == 0
        assert not database.exists("VM", left)
        assert not database.exists("VDI", vdis[0])


async def test_a_disk_that_somebody_attaches_while_the_run_goes_on_stays(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        helper = here.simulator.make_vm("helper", [2 * MiB], power_state="Halted")
        database = here.simulator.pool.database
        (vdi, _) = disks(here, kept(here))
        fault_of = here.simulator.faults.take_call

        def attach(method: str):
            if method == "VM.snapshot":
                drive = {"VM": helper, "VDI": vdi, "userdevice": "5", "mode": "RO", "type": "Disk", "empty": False}
                database.create("VBD", drive)
            return fault_of(method)

        here.simulator.faults.take_call = attach  # type: ignore[method-assign]
        assert (await here.run(web(here))).exit_code == 0
        assert database.exists("VDI", vdi)


async def test_a_job_that_keeps_no_snapshot_does_not_cost_another_one_its_base(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        fill_some(here, [vdi])
        keeps = here.job(name="keeps")
        keeps_none = here.job('[backup]\nkeep-snapshot = "none"\n', name="keeps-none")
        modes = []
        for job in (keeps, keeps_none, keeps, keeps_none, keeps_none, keeps):
            assert (await here.run(job)).exit_code == 0
            modes += [plan.mode for plan in here.planned()]
            assert len(here.snapshots()) == 1
            assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]
            here.simulator.guest(vdi).scatter(2, 4096)
        assert modes == ["full", *["incremental"] * 5]


async def test_a_job_that_keeps_none_any_more_removes_what_it_has_kept(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        assert (await here.run()).exit_code == 0
        assert (await here.run(here.job('[backup]\nkeep-snapshot = "none"\n'))).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental"]
        assert here.snapshots() == []
