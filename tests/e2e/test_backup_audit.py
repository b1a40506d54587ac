"""CBT that forgets changes: the audit finds it, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from mover.backup.audit import UNTRUE, pick
from mover.events import Note
from mover.job import Job
from mover.simulator.faults import CbtFault
from protocol.extent import Extent, total
from tests.pool_fixtures import GRANULE, MiB, Site, fill_some, site

SIZE = 8 * MiB


def audited(here: Site, blocks: int) -> Job:
    return here.job(f"[backup]\ncbt-audit = {blocks}\n")


async def a_full_and_changes(here: Site) -> str:
    (vdi,) = vdis = here.simulator.vdis_of(here.simulator.make_vm("web", [SIZE]))
    fill_some(here, vdis)
    assert (await here.run()).exit_code == 0
    here.simulator.guest(vdi).fill(MiB, GRANULE, "random")
    here.simulator.guest(vdi).fill(5 * MiB, 2 * GRANULE, "random")
    return vdi


async def test_what_cbt_forgets_is_found_and_makes_a_full(tmp_path: Path):
    async with site(tmp_path) as here:
        vdi = await a_full_and_changes(here)
        here.simulator.faults.arm(CbtFault(missing=2))
        assert (await here.run(audited(here, SIZE // GRANULE))).exit_code == 0
        (plan,) = here.planned()
        assert (plan.mode, plan.reason) == ("full", UNTRUE)
        (said,) = [note for note in here.notes() if "CBT IS NOT TO BE TRUSTED" in note]
        assert f"byte {5 * MiB}" in said and "read in full" in said
        point = here.store.points()[-1]
        assert point.record.disks[0].reason == UNTRUE
        assert await here.restored(point) == [here.content(vdi)]
        # The next one starts from there.
        assert (await here.run(audited(here, 10))).exit_code == 0
        assert here.planned()[0].mode == "incremental"


async def test_what_the_audit_finds_makes_a_full_of_a_job_that_allows_incrementals_only(tmp_path: Path):
    async with site(tmp_path) as here:
        vdi = await a_full_and_changes(here)
        here.simulator.faults.arm(CbtFault(missing=2))
        job = here.job(f'[backup]\ncbt-audit = {SIZE // GRANULE}\nmode = "incremental"\n')
        assert (await here.run(job)).exit_code == 0
        assert [(plan.mode, plan.reason) for plan in here.planned()] == [("full", UNTRUE)]
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


async def test_without_the_audit_it_would_be_lost(tmp_path: Path):
    """Else the test above would show nothing."""
    async with site(tmp_path) as here:
        vdi = await a_full_and_changes(here)
        here.simulator.faults.arm(CbtFault(missing=2))
        assert (await here.run()).exit_code == 0
        assert here.planned()[0].mode == "incremental"
        assert await here.restored(here.store.points()[-1]) != [here.content(vdi)]


async def test_an_audit_that_finds_nothing_says_so_and_reads_little(tmp_path: Path):
    async with site(tmp_path) as here:
        vdi = await a_full_and_changes(here)
        job = here.job("[backup]\ncbt-audit = 7\n[limits]\nmerge-gaps = false\n")
        assert (await here.run(job)).exit_code == 0
        (done,) = here.finished()
        assert (done.mode, done.changed, done.read) == ("incremental", 3 * GRANULE, (3 + 7) * GRANULE)
        assert here.notes() == []
        said = [event.message for event in here.events if isinstance(event, Note)]
        assert any("7 blocks that CBT calls unchanged are what the last restore point has" in one for one in said)
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


async def test_a_disk_without_changes_and_one_that_has_grown_are_audited(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [SIZE, SIZE + 512], power_state="Halted")
        first, second = here.simulator.vdis_of(vm)
        fill_some(here, [first, second])
        assert (await here.run()).exit_code == 0
        here.simulator.disks.resize(second, SIZE + 3 * MiB)
        database = here.simulator.pool.database
        database.update("VDI", database.by_uuid("VDI", second), virtual_size=SIZE + 3 * MiB)
        assert (await here.run(audited(here, 100_000))).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental", "incremental"]
        assert here.notes() == []
        assert [done.read for done in here.finished()] == [SIZE, SIZE + 3 * MiB]
        assert await here.restored(here.store.points()[-1]) == [here.content(first), here.content(second)]


@pytest.mark.parametrize("number", [0, 1, 5, 11, 50])
def test_a_sample_is_of_different_whole_chunks_of_what_there_is(number: int):
    extents = [Extent(0, 4 * GRANULE), Extent(6 * GRANULE, GRANULE), Extent(10 * GRANULE, 6 * GRANULE - 512)]
    chosen = pick(lambda: extents, GRANULE, number)
    assert len(set(chosen)) == len(chosen) == min(number, 11)
    assert chosen == sorted(chosen)
    inside = {Extent(e.offset + at, min(GRANULE, e.length - at)) for e in extents for at in range(0, e.length, GRANULE)}
    assert set(chosen) <= inside
    assert total(chosen) <= total(extents)
