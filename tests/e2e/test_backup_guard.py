"""What a backup does to the VM on the pool, and undoes: migration is blocked; what is somebody else's stays theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mover.errors import MigratingError
from mover.events import AnyEvent, DiskPlanned
from mover.run import run_job
from mover.simulator.faults import CallFault
from protocol.tasks import task_group
from tests.pool_fixtures import MiB, Site, fill_some, site

MOVES = {"migrate_send", "pool_migrate"}


def blocked(here: Site, vm: str) -> dict[str, str]:
    found: dict[str, str] = here.simulator.pool.database.get("VM", vm)["blocked_operations"]
    return dict(found)


def a_vm(here: Site) -> str:
    vm = here.simulator.make_vm("web", [8 * MiB])
    fill_some(here, here.simulator.vdis_of(vm))
    return vm


async def seen_in_the_run(here: Site, vm: str) -> dict[str, str]:
    """What is blocked while the VM's disk is read."""
    seen: list[dict[str, str]] = []

    def look(event: AnyEvent) -> None:
        here.events.append(event)
        if isinstance(event, DiskPlanned):
            seen.append(blocked(here, vm))

    assert (await run_job(here.job(), emit=look)).exit_code == 0
    (found,) = seen
    return found


def saved_vm(here: Site) -> dict[str, Any]:
    """The VM's record in the newest restore point."""
    blob = here.store.get_blob(here.store.points()[-1].record.metadata)
    found: dict[str, Any] = msgspec.json.decode(blob)["vm"]
    return found


async def test_a_vm_stays_where_it_is_while_it_is_backed_up(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        during = await seen_in_the_run(here, vm)
        assert during.keys() == MOVES
        assert all(reason.startswith("mover test ") for reason in during.values())
        assert blocked(here, vm) == {}
        assert saved_vm(here)["blocked_operations"] == {}, "a restored VM can be migrated"


async def test_what_somebody_else_has_blocked_stays_blocked(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        theirs = {"pool_migrate": "not on weekdays", "destroy": "keep it"}
        here.simulator.pool.database.update("VM", vm, blocked_operations=theirs)
        during = await seen_in_the_run(here, vm)
        assert during.items() >= theirs.items()
        assert during.keys() == MOVES | {"destroy"}
        assert blocked(here, vm) == theirs
        assert saved_vm(here)["blocked_operations"] == theirs


async def test_what_a_killed_run_has_blocked_is_released_by_the_next(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        left = await seen_in_the_run(here, vm)
        # One that the job does not select any more.
        other = here.simulator.make_vm("other", [4 * MiB])
        for ref in (vm, other):
            here.simulator.pool.database.update("VM", ref, blocked_operations=left | {"start": "broken"})
        result = await here.run(here.job(selector='name = "web"'))
        assert result.exit_code == 0
        assert blocked(here, vm) == blocked(here, other) == {"start": "broken"}


async def test_an_interrupted_run_releases_the_vm(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        reading = asyncio.Event()

        def look(event: AnyEvent) -> None:
            if isinstance(event, DiskPlanned):
                reading.set()

        async with task_group() as group:
            task = group.create_task(run_job(here.job(), emit=look))
            await reading.wait()
            assert blocked(here, vm).keys() == MOVES
            task.cancel()
        assert task.cancelled()
        assert blocked(here, vm) == {}


@pytest.mark.parametrize("call", ["get_blocked_operations", "add_to_blocked_operations", "update_allowed_operations"])
async def test_a_run_that_is_interrupted_while_it_blocks_releases_the_vm(tmp_path: Path, call: str):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        fault_of = here.simulator.faults.take_call
        running: asyncio.Task[object]
        met: list[str] = []

        def interrupt(method: str) -> CallFault | None:
            if method == f"VM.{call}" and not met:
                met.append(method)
                running.cancel()
            return fault_of(method)

        async with task_group() as group:
            running = group.create_task(run_job(here.job(), emit=here.events.append))
            here.simulator.faults.take_call = interrupt  # type: ignore[method-assign]
        assert met and running.cancelled()
        assert blocked(here, vm) == {}
        assert here.notes() == []


async def test_a_vm_on_its_way_is_left_alone_and_the_others_are_not(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        here.simulator.make_vm("other", [4 * MiB])
        here.simulator.pool.database.update("VM", vm, current_operations={"task": "pool_migrate"})
        result = await here.run()
        assert result.exit_code == 3
        outcomes = {one.name: (one.outcome, one.exit_code) for one in result.vms}
        assert outcomes == {"web": ("failed", MigratingError.exit_code), "other": ("done", 0)}
        assert blocked(here, vm) == {}


async def test_a_pool_that_does_not_let_us_block_is_a_warning(tmp_path: Path):
    async with site(tmp_path) as here:
        a_vm(here)
        here.simulator.faults.arm(CallFault("VM.add_to_blocked_operations", "RBAC_PERMISSION_DENIED", ("x", "")))
        assert (await here.run()).exit_code == 0
        assert any("cannot be blocked" in note for note in here.notes())


async def test_a_snapshot_of_ours_does_not_pass_for_somebody_elses(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        (vdi,) = here.simulator.vdis_of(vm)
        theirs = {"xo:backup:job": "1", "xo:backup:deltaChainLength": "3", "xo:copy_of": "x"}
        made = here.simulator.pool.database
        for kind, ref in (("VM", vm), ("VDI", made.by_uuid("VDI", vdi))):
            made.update(kind, ref, other_config={**theirs, "plain": "yes"})
        assert (await here.run()).exit_code == 0
        snapshots = [
            record["other_config"]
            for kind in ("VM", "VDI")
            for _, record in made.items(kind)
            if record["is_a_snapshot"]
        ]
        assert len(snapshots) == 2
        for other_config in snapshots:
            assert not theirs.keys() & other_config.keys()
            assert other_config["mover:job"] == "test"
        assert made.get("VM", vm)["other_config"].items() >= theirs.items(), "the VM's own keys are its owner's"
        assert saved_vm(here)["other_config"].items() >= theirs.items()
