"""Schedules of a job: their modes, and that two runs of one job never overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from mover.errors import UsageError
from tests.operator_site import Ended, operator
from tests.pool_fixtures import MiB, fill_some, site

SCHEDULES = (
    '[[schedules]]\nname = "nightly"\n[[schedules]]\nname = "weekly"\nmode = "full"\n'
    '[[schedules]]\nname = "hourly"\nmode = "incremental"\n'
)


async def test_the_mode_of_a_schedule_wins_over_that_of_the_job(tmp_path: Path):
    async with site(tmp_path) as here:
        fill_some(here, here.simulator.vdis_of(here.simulator.make_vm("web", [2 * MiB])))
        job = here.job(f'[backup]\nmode = "incremental"\n{SCHEDULES}')
        assert (await here.run(job, schedule="hourly")).exit_code == 22, "there is nothing to start from"
        runs = [("nightly", "full"), ("hourly", "incremental"), ("weekly", "full"), (None, "incremental")]
        for schedule, mode in runs:
            assert (await here.run(job, schedule=schedule)).exit_code == 0
            assert [plan.mode for plan in here.planned()] == [mode]
            assert here.store.points()[-1].record.schedule == schedule
        with pytest.raises(UsageError, match="has no schedule yearly") as caught:
            await here.run(job, schedule="yearly")
        assert caught.value.hint == "it has nightly, weekly, hourly"


async def test_a_second_run_of_the_job_ends_at_once_and_says_whose_turn_it_is(tmp_path: Path):
    async with operator(tmp_path, more=SCHEDULES) as one:
        disks = {"web": one.vm("web", [20 * MiB])}
        second: list[Ended] = []
        first: list[int] = []

        async def meanwhile() -> None:
            assert one.running is not None
            one.here.simulator.network.bandwidth = MiB / 2
            first.append(one.running.pid)
            second.append(await one.run(None, "--schedule", "weekly"))

        ended = await one.run({("disk.progress", 2, one.uuid("web")): meanwhile}, "--schedule", "nightly")
        assert ended.code == 0
        assert second[0].code == 75
        assert second[0].said == [
            f"error: another run of the job test is active (process {first[0]})",
            "hint: wait for its end, or stop it",
        ]
        assert second[0].of("vm.started") == []
        assert len(one.here.store.points()) == 1
        await one.assert_well(disks)
