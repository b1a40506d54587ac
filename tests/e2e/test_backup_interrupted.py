"""Runs that are stopped while the pool is busy with a snapshot of theirs: nothing is left there, or it is warned of."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mover.events import VmFinished
from mover.job import Job
from mover.run import run_job
from mover.simulator import Options
from mover.store import PointRecord, Writer
from protocol.xapi import session
from tests.pool_fixtures import MiB, Site, fill_some, site


async def stop_when(here: Site, moment: Callable[[], object], job: Job | None = None) -> VmFinished:
    """Interrupt a run once `moment` has come; returns what it said of its VM."""
    here.events = []
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run_job(job or here.job(), emit=here.events.append))
        await until(moment)
        running.cancel()
    assert running.cancelled()
    (finished,) = [event for event in here.events if isinstance(event, VmFinished)]
    return finished


async def until(moment: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not moment():  # noqa: ASYNC110 - the pool's state and the store's tell nobody when they change
            await asyncio.sleep(0.02)


def under_way(here: Site, call: str) -> bool:
    """Whether the pool is busy with such a call."""
    tasks = [record for _, record in here.simulator.pool.database.items("task")]
    return any(task["name_label"] == f"Async.{call}" and task["status"] == "pending" for task in tasks)


def snapshot_vms(here: Site) -> list[str]:
    return [ref for ref, record in here.simulator.pool.database.items("VM") if record["is_a_snapshot"]]


async def test_a_snapshot_that_is_being_taken_is_waited_for_and_removed(tmp_path: Path):
    async with site(tmp_path, Options(durations={"VM.snapshot": 1.5})) as here:
        here.simulator.make_vm("web", [4 * MiB])
        finished = await stop_when(here, lambda: under_way(here, "VM.snapshot"))
        assert (finished.outcome, finished.point) == ("interrupted", None)
        assert not under_way(here, "VM.snapshot")
        assert here.snapshots() == []
        assert here.notes() == []


async def test_a_snapshot_that_takes_longer_is_warned_of_and_swept_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "_LAST_WAIT", 0.2)
    async with site(tmp_path, Options(durations={"VM.snapshot": 3.0})) as here:
        here.simulator.make_vm("web", [4 * MiB])
        await stop_when(here, lambda: under_way(here, "VM.snapshot"))
        assert here.notes() == [
            "VM.snapshot was cancelled and still goes on on the pool: what it makes will be swept by the next run"
        ]
        await until(here.snapshots)
        (left,) = here.snapshots()
        assert (await here.run()).exit_code == 0
        assert left not in here.snapshots()


async def test_who_stops_a_run_that_waits_for_old_snapshots_is_told_of_the_point_and_of_what_is_left(tmp_path: Path):
    async with site(tmp_path, Options(linger=60)) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        fill_some(here, here.simulator.vdis_of(vm))
        job = here.job('[backup]\nkeep-snapshot = "none"\n')
        finished = await stop_when(here, lambda: here.snapshots() and not snapshot_vms(here), job)
        (point,) = here.store.points()
        assert (finished.outcome, finished.point) == ("done", point.id)
        assert here.notes() == [
            "interrupted before old snapshots were removed: those left will be swept by the next run"
        ]
        assert len(here.snapshots()) == 1


async def test_who_stops_a_run_in_the_moment_of_its_commit_has_the_point_and_the_base_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        committing = threading.Event()
        commit = Writer.commit

        def slow(writer: Writer, record: PointRecord) -> str:
            committing.set()
            time.sleep(0.5)
            return commit(writer, record)

        with monkeypatch.context() as once:
            once.setattr(Writer, "commit", slow)
            finished = await stop_when(here, committing.is_set)
        (point,) = here.store.points()
        assert (finished.outcome, finished.point) == ("done", point.id)
        assert (await here.run()).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental"]


async def test_who_stops_a_run_that_cleans_up_after_a_failure_is_told_of_what_is_left(tmp_path: Path):
    async with site(tmp_path, Options(durations={"VDI.destroy": 1.0})) as here:
        here.simulator.make_vm("web", [4 * MiB, 2 * MiB])
        job = here.job('[backup]\nmode = "incremental"\n')
        finished = await stop_when(here, lambda: under_way(here, "VDI.destroy"), job)
        assert finished.outcome == "interrupted"
        assert here.notes() == ["its snapshot could not be removed in time: what is left will be swept by the next run"]
        assert len(here.snapshots()) == 1
        assert (await here.run()).exit_code == 0
        assert len(here.snapshots()) == 2
