"""How a VM's snapshot is taken: quiesced where that is to be had, and without the disks that the job leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mover.simulator import XCP_NG_8_2, XCP_NG_8_3, XENSERVER_7_6, Options, Release
from mover.simulator.faults import CallFault
from tests.pool_fixtures import MiB, Site, fill_some, site

QUIESCE = "[backup]\nquiesce = true\n"


def kinds(here: Site) -> list[str]:
    """How the pool says that the snapshots it has were taken."""
    records = (record for _, record in here.simulator.pool.database.items("VM") if record["is_a_snapshot"])
    return [record["snapshot_info"]["disk-snapshot-type"] for record in records]


def agent(here: Site, vm: str) -> None:
    """Give a VM what a guest that can be quiesced reports."""
    database = here.simulator.pool.database
    metrics = database.create("VM_guest_metrics", {"other": {"feature-snapshot": "1"}})
    database.update("VM", vm, guest_metrics=metrics)


async def test_a_quiesced_snapshot_is_taken_where_the_pool_offers_one(tmp_path: Path):
    async with site(tmp_path, Options(release=XENSERVER_7_6)) as here:
        vm = here.simulator.make_vm("web", [4 * MiB, 2 * MiB], names=["root", "scratch"])
        agent(here, vm)
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        job = here.job(QUIESCE, selector='all = true\nexclude-disks = ["scratch"]')
        assert (await here.run(job)).exit_code == 0
        assert here.notes() == []
        assert kinds(here) == ["quiesced"]
        assert len(here.snapshots()) == 1, "that call leaves no disk out: the snapshot of this one was removed"
        assert await here.restored(here.store.points()[-1]) == [here.content(vdis[0])]


NOT_OFFERED = {
    "the call is gone": (XCP_NG_8_3, None, "MESSAGE_REMOVED"),
    "the call was never heard of": (XENSERVER_7_6, "MESSAGE_METHOD_UNKNOWN", "MESSAGE_METHOD_UNKNOWN"),
    "the guest has no agent": (XENSERVER_7_6, None, "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED"),
    "it fails": (XENSERVER_7_6, "VM_SNAPSHOT_WITH_QUIESCE_FAILED", "VM_SNAPSHOT_WITH_QUIESCE_FAILED"),
    "anything else": (XENSERVER_7_6, "INTERNAL_ERROR", "INTERNAL_ERROR"),
}


@pytest.mark.parametrize("case", NOT_OFFERED)
async def test_otherwise_a_regular_one_is_taken_and_that_is_said(tmp_path: Path, case: str):
    release, fault, code = NOT_OFFERED[case]
    async with site(tmp_path, Options(release=release)) as here:
        here.simulator.make_vm("web", [2 * MiB])
        if fault is not None:
            here.simulator.faults.arm(CallFault("VM.snapshot_with_quiesce", fault, ("why",)))
        assert (await here.run(here.job(QUIESCE))).exit_code == 0
        (said,) = [note for note in here.notes() if "quiesced" in note]
        assert code in said and said.endswith(": took a regular one")
        assert kinds(here) == ["crash_consistent"]


async def test_nobody_asks_for_a_quiesced_one_unless_the_job_does(tmp_path: Path):
    async with site(tmp_path, Options(release=XENSERVER_7_6)) as here:
        agent(here, here.simulator.make_vm("web", [2 * MiB]))
        assert (await here.run()).exit_code == 0
        assert kinds(here) == ["crash_consistent"]


@pytest.mark.parametrize(
    ("release", "code"), [(XCP_NG_8_3, 0), (XCP_NG_8_2, 23)], ids=["8.3 leaves it out", "8.2 cannot"]
)
@pytest.mark.parametrize("rule", ["1", '"scratch"', '"scr*"', '"{uuid}"', '"no-backup"'])
async def test_a_disk_that_is_left_out_is_not_snapshotted_if_the_pool_can_do_that(
    tmp_path: Path, release: Release, code: int, rule: str
):
    """The disk here is one that cannot be snapshotted: the pool says so if anybody tries."""
    async with site(tmp_path, Options(release=release)) as here:
        vm = here.simulator.make_vm("db", [4 * MiB, 2 * MiB], names=["root", "scratch"])
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        database = here.simulator.pool.database
        database.update("VDI", database.by_uuid("VDI", vdis[1]), sharable=True, tags=["no-backup"])
        left_out = rule.format(uuid=vdis[1])
        result = await here.run(here.job(selector=f"all = true\nexclude-disks = [{left_out}]"))
        assert result.exit_code == code, here.events
        if not code:
            (point,) = here.store.points()
            assert [disk.name for disk in point.record.disks] == ["root"]
            assert await here.restored(point) == [here.content(vdis[0])]
