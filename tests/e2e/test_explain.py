"""What `explain` says is what the run then does; and it changes nothing."""

import json
from pathlib import Path

import pytest

from mover.explain import explain
from mover.simulator import XENSERVER_7_1, Options
from protocol.secret import Secret
from protocol.xapi import Trust, connect
from tests.pool_fixtures import GRANULE, MiB, Site, fill_some, site


def state_of(here: Site) -> str:
    """What lasts on the pool; a control domain lets go of a disk that was read a moment after."""
    database = here.simulator.pool.database
    lasting = {kind: [ref for ref, _ in database.items(kind)] for kind in ("VM", "VDI", "network", "task", "session")}
    domains = {ref for ref, vm in database.items("VM") if vm["is_control_domain"]}
    guests = [ref for ref, vbd in database.items("VBD") if vbd["VM"] not in domains]
    return json.dumps(lasting | {"VBD": guests})


async def agree(here: Site, job=None) -> None:
    """Ask, run, and compare the two."""
    job = job or here.job()
    before = state_of(here)
    (told,) = await explain(job)
    assert state_of(here) == before
    assert (await here.run(job)).exit_code == 0
    assert [(disk.position, disk.mode) for disk in told.disks] == [(plan.disk, plan.mode) for plan in here.planned()]
    for disk, plan in zip(told.disks, here.planned(), strict=True):
        assert (disk.reason is None) == (plan.reason is None)
        assert disk.reason is None or disk.reason.startswith("CBT") or disk.reason == plan.reason


async def test_a_first_full_an_incremental_and_the_kept_snapshot(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [24 * MiB, 6 * MiB], power_state="Halted")
        fill_some(here, here.simulator.vdis_of(vm))
        (told,) = await explain(here.job())
        assert [disk.reason for disk in told.disks] == ["first backup of this disk"] * 2
        assert [disk.to_read for disk in told.disks] == [24 * MiB, 6 * MiB]
        assert told.last_point is None and told.snapshots == []
        await agree(here)
        here.simulator.guest(here.simulator.vdis_of(vm)[0]).fill(8 * MiB, 5 * GRANULE, "random")
        (told,) = await explain(here.job())
        (point,) = here.store.points()
        assert told.last_point == point.id
        assert [(disk.mode, disk.to_read) for disk in told.disks] == [("incremental", 5 * GRANULE), ("incremental", 0)]
        assert [disk.base_snapshot for disk in told.disks] == [disk.snapshot_uuid for disk in point.record.disks]
        assert [(kept.owner, kept.fate) for kept in told.snapshots] == [("this job", "base of the next incremental")]
        await agree(here)
        assert [plan.to_read for plan in here.planned()] == [5 * GRANULE, 0]


async def test_an_attached_disk_is_guessed_from_history_and_that_is_said(tmp_path: Path):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [16 * MiB]))
        await here.run()
        (told,) = await explain(here.job())
        assert told.disks[0].to_read is None
        assert "not told while the disk is attached" in told.disks[0].estimate
        here.simulator.guest(vdi).fill(0, 3 * GRANULE, "random")
        await here.run()
        (told,) = await explain(here.job())
        assert (told.disks[0].mode, told.disks[0].to_read) == ("incremental", here.finished()[0].read)
        assert "as the last incremental" in told.disks[0].estimate


async def base_gone(here: Site, vm: str, vdi: str) -> None:
    database = here.simulator.pool.database
    for ref, record in list(database.items("VM")):
        if record["is_a_snapshot"]:
            database.destroy("VM", ref)
    for ref, record in list(database.items("VDI")):
        if record["is_a_snapshot"]:
            database.destroy("VDI", ref)


async def cbt_off(here: Site, vm: str, vdi: str) -> None:
    here.simulator.disks.disable_cbt(vdi)
    database = here.simulator.pool.database
    database.update("VDI", database.by_uuid("VDI", vdi), cbt_enabled=False)


async def no_purpose(here: Site, vm: str, vdi: str) -> None:
    database = here.simulator.pool.database
    for ref, _ in database.items("network"):
        database.update("network", ref, purpose=[])


@pytest.mark.parametrize("spoil", [base_gone, cbt_off, no_purpose], ids=lambda spoil: spoil.__name__)
async def test_the_reason_for_a_full_is_the_one_that_the_run_gives(tmp_path: Path, spoil):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [16 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        await here.run()
        await spoil(here, vm, vdi)
        await agree(here)
        assert here.planned()[0].mode == "full"
        assert here.planned()[0].reason


async def test_a_job_that_asks_for_a_full_and_one_that_cannot_have_its_incremental(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        (told,) = await explain(here.job('[backup]\nmode = "incremental"\n'))
        assert told.refused and "first backup of this disk" in told.refused
        await here.run()
        (told,) = await explain(here.job(), full=True)
        assert (told.disks[0].mode, told.disks[0].reason) == ("full", "a full was asked for")
        schedules = '[[schedules]]\nname = "weekly"\nmode = "full"\n'
        (told,) = await explain(here.job(schedules), schedule="weekly")
        assert (told.mode, told.disks[0].reason) == ("full", "a full was asked for")


async def test_snapshots_of_others_are_named_and_left_alone(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        await here.run(here.job(name="other"))
        await here.run()
        database = here.simulator.pool.database
        trust = Trust.pinned(*here.simulator.fingerprints)
        secret = Secret(here.simulator.password)
        async with connect(here.simulator.url, here.simulator.username, secret, trust) as pool:
            by_hand = await pool.run("VM.snapshot", vm, "before the update")
            of_xo = await pool.run("VM.snapshot", vm, "xo")
        tagged = {**database.get("VM", of_xo)["other_config"], "xo:backup:job": "j"}
        database.update("VM", of_xo, other_config=tagged)
        (told,) = await explain(here.job())
        whose = {kept.uuid: (kept.owner, kept.fate) for kept in told.snapshots}
        assert whose[database.get("VM", by_hand)["uuid"]] == (
            "nobody says: a person, or a schedule of the pool",
            "left alone",
        )
        assert whose[database.get("VM", of_xo)["uuid"]] == ("Xen Orchestra", "left alone")
        assert sorted(owner.split(" with")[0] for owner, _ in whose.values()) == [
            "Xen Orchestra",
            "mover's job other",
            "nobody says: a person, or a schedule of the pool",
            "this job",
        ]


async def test_a_cbt_log_without_data_is_told_apart(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        await here.run(here.job('[backup]\nkeep-snapshot = "metadata"\n'))
        (told,) = await explain(here.job())
        assert [(kept.kind, kept.data, kept.fate) for kept in told.snapshots] == [
            ("disk", False, "base of the next incremental")
        ]


async def test_a_release_without_cbt_or_nbd(tmp_path: Path):
    async with site(tmp_path, Options(release=XENSERVER_7_1)) as here:
        here.simulator.make_vm("web", [4 * MiB])
        (told,) = await explain(here.job())
        assert [(disk.mode, disk.over, disk.to_read) for disk in told.disks] == [("full", "HTTP", 4 * MiB)]
