"""Storage that is in no state for a snapshot: a run says so before it takes one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from mover.errors import UnfitStorageError
from tests.pool_fixtures import MiB, Site, fill_some, site

GiB = 1 << 30


def a_vm(here: Site) -> str:
    vm = here.simulator.make_vm("web", [2 * MiB])
    fill_some(here, here.simulator.vdis_of(vm))
    return vm


def chain(here: Site, vm: str, length: int, *, waiting: bool = False) -> None:
    """Give the VM's disk so many images, with a snapshot on each base copy unless they wait to be coalesced."""
    database = here.simulator.pool.database
    live = database.by_uuid("VDI", here.simulator.vdis_of(vm)[0])
    images = [live]
    for _ in range(length - 1):
        fields = dict(database.get("VDI", live)) | {"managed": False, "name_label": "base copy", "sm_config": {}}
        del fields["uuid"]
        images.append(database.create("VDI", fields))
    for child, parent in pairwise(images):
        above = {"vhd-parent": database.get("VDI", parent)["uuid"]}
        database.update("VDI", child, sm_config=above)
        if not waiting:
            fields = dict(database.get("VDI", live)) | {"sm_config": above, "is_a_snapshot": True}
            del fields["uuid"]
            database.create("VDI", fields)


def room(here: Site, free: int, kind: str = "ext") -> None:
    """Have something of somebody else's in the SR that leaves about so much."""
    database = here.simulator.pool.database
    (sr,) = database.refs("SR")
    (driver,) = database.refs("SM")
    for ref, record in list(database.items("VDI")):
        if record["name_label"] == "theirs":
            database.destroy("VDI", ref)
    database.create("VDI", {"SR": sr, "name_label": "theirs", "physical_utilisation": (1 << 40) - free})
    database.update("SM", driver, type=kind)
    database.update("SR", sr, physical_size=1 << 40, physical_utilisation=(1 << 40) - free, type=kind)


def snapshots(here: Site) -> int:
    return sum(record["is_a_snapshot"] for _, record in here.simulator.pool.database.items("VM"))


async def test_a_long_chain_is_a_warning_and_one_at_the_limit_is_refused(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        chain(here, vm, 20)
        assert (await here.run()).exit_code == 0
        (said,) = here.notes()
        assert "has 20 images; at 30 the pool takes no more" in said
    async with site(tmp_path / "2") as here:
        chain(here, a_vm(here), 30)
        other = here.simulator.make_vm("other", [2 * MiB])
        result = await here.run()
        assert [(one.name, one.exit_code) for one in result.vms] == [("other", 0), ("web", UnfitStorageError.exit_code)]
        assert [point.record.vm_uuid for point in here.store.points()] == [
            here.simulator.pool.database.get("VM", other)["uuid"]
        ]


async def test_images_that_wait_to_be_coalesced_are_told_of(tmp_path: Path):
    async with site(tmp_path) as here:
        chain(here, a_vm(here), 4, waiting=True)
        assert (await here.run()).exit_code == 0
        (said,) = here.notes()
        assert "3 images of the chain of" in said and "wait to be coalesced" in said
    async with site(tmp_path / "2") as here:
        chain(here, a_vm(here), 4)
        assert (await here.run()).exit_code == 0
        assert here.notes() == []


async def test_little_space_is_a_warning_and_none_is_refused_before_anything_is_done(tmp_path: Path):
    async with site(tmp_path) as here:
        a_vm(here)
        marker = tmp_path / "frozen"
        job = here.job(f'[hooks]\npre-snapshot = ["touch", "{marker}"]\n')
        room(here, 5 * GiB)
        assert (await here.run(job)).exit_code == 0
        (said,) = here.notes()
        assert "free, and a snapshot may want 10 GiB" in said
        marker.unlink()
        before = snapshots(here)
        room(here, GiB // 2)
        result = await here.run(job)
        assert result.exit_code == UnfitStorageError.exit_code
        assert not marker.exists() and snapshots(here) == before
        room(here, 100 * GiB)
        assert (await here.run(job)).exit_code == 0


async def test_a_thick_repository_wants_the_whole_size(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [12 * GiB, 8 * GiB])
        room(here, 19 * GiB)
        assert (await here.run()).exit_code == 0
        assert here.notes() == []
        room(here, 19 * GiB, "lvm")
        assert (await here.run()).exit_code == 0
        (said,) = here.notes()
        assert "free, and a snapshot may want 20 GiB" in said
