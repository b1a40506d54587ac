"""VMs that get other disks while a run is busy with the VMs before them, or in the moment of their snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mover.backup import snapshot
from mover.events import AnyEvent, VmStarted
from mover.run import RunResult, join_pool, run_job
from mover.simulator.vm_snapshot import revert_vm
from tests.pool_fixtures import MiB, Site, fill_some, site

ONE_BY_ONE = "[limits]\nvms = 1\n"


async def run_and_meanwhile(here: Site, change: Callable[[], object], selector: str = "all = true") -> RunResult:
    """A run of one VM after the other, with `change` once the first of them has begun."""
    here.events = []

    def emit(event: AnyEvent) -> None:
        here.events.append(event)
        if isinstance(event, VmStarted) and event.name == "a":
            change()

    return await run_job(here.job(ONE_BY_ONE, selector), emit=emit)


def just_before_the_snapshot(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    take = snapshot.take

    async def changed(*args: Any, **options: Any) -> Any:
        change()
        return await take(*args, **options)

    monkeypatch.setattr(snapshot, "take", changed)


def attach(here: Site, vm: str, name: str, position: str = "5") -> str:
    """Give a VM another disk; returns its UUID."""
    database = here.simulator.pool.database
    donor = here.simulator.make_vm(f"donor of {name}", [4 * MiB], names=[name], power_state="Halted")
    (uuid,) = here.simulator.vdis_of(donor)
    (vbd,) = [ref for ref in database.get("VM", donor)["VBDs"] if database.get("VBD", ref)["type"] == "Disk"]
    database.update("VBD", vbd, VM=vm, userdevice=position)
    return uuid


def detach(here: Site, vm: str) -> None:
    """Take all disks from a VM; they stay on the pool."""
    database = here.simulator.pool.database
    for vbd in list(database.get("VM", vm)["VBDs"]):
        if database.get("VBD", vbd)["type"] == "Disk":
            database.destroy("VBD", vbd)


async def reverting(here: Site, vm: str) -> Callable[[], object]:
    """What takes a VM back to a snapshot that is made now: all its disks are new ones then."""
    async with join_pool(here.job().pool) as (pool, _):
        theirs = await pool.run("VM.snapshot", vm, "somebody else's")
    return lambda: revert_vm(here.simulator.pool, vm, here.simulator.pool.database.get("VM", theirs))


@pytest.mark.parametrize("strategy", ["cbt", "xva"])
async def test_a_vm_that_was_reverted_before_its_turn_is_backed_up_with_its_new_disks(tmp_path: Path, strategy: str):
    async with site(tmp_path) as here:
        here.simulator.make_vm("a", [MiB])
        vm = here.simulator.make_vm("b", [4 * MiB, 2 * MiB])
        before = here.simulator.vdis_of(vm)
        fill_some(here, before)
        revert = await reverting(here, vm)
        result = await run_and_meanwhile(here, revert, f'all = true\nstrategy = "{strategy}"')
        assert result.exit_code == 0, here.events
        assert here.notes() == []
        now = here.simulator.vdis_of(vm)
        assert not set(now) & set(before)
        point = here.store.points()[-1]
        assert [disk.vdi_uuid for disk in point.record.disks] == now
        assert await here.restored(point) == [here.content(vdi) for vdi in now]


async def test_a_disk_that_was_attached_before_the_vms_turn_is_part_of_its_backup(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("a", [MiB])
        vm = here.simulator.make_vm("b", [4 * MiB])

        def change() -> None:
            fill_some(here, [attach(here, vm, "data")])
            attach(here, vm, "scratch", "6")

        selector = 'name = "a"\n[[vms]]\nname = "b"\nexclude-disks = ["scratch*"]'
        result = await run_and_meanwhile(here, change, selector)
        assert result.exit_code == 0, here.events
        assert here.notes() == []
        point = here.store.points()[-1]
        assert [disk.name for disk in point.record.disks] == ["b disk 0", "data"]
        assert await here.restored(point) == [here.content(vdi) for vdi in here.simulator.vdis_of(vm)[:2]]


async def test_a_disk_that_is_lost_in_the_moment_of_the_snapshot_fails_the_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        just_before_the_snapshot(monkeypatch, lambda: detach(here, vm))
        result = await here.run()
        assert result.exit_code == 23
        assert here.store.points() == []
        assert here.snapshots() == []


async def test_a_vm_that_gets_all_new_disks_in_the_moment_of_the_snapshot_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pool has a snapshot wait while it reverts, and shows the VM without any disks until then."""
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        detach(here, vm)
        just_before_the_snapshot(monkeypatch, lambda: attach(here, vm, "data"))
        result = await here.run(here.job(selector='name = "web"'))
        assert result.exit_code == 23
        assert here.store.points() == []
        assert here.snapshots() == []


async def test_a_disk_that_comes_in_the_moment_of_the_snapshot_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        with monkeypatch.context() as once:
            just_before_the_snapshot(once, lambda: attach(here, vm, "data"))
            result = await here.run(here.job(selector='name = "web"'))
        assert result.exit_code == 0
        assert any("that disk is not part of this backup" in note for note in here.notes())
        assert [disk.name for disk in here.store.points()[-1].record.disks] == ["web disk 0"]
        assert len(here.snapshots()) == 1
        assert (await here.run(here.job(selector='name = "web"'))).exit_code == 0
        assert [disk.name for disk in here.store.points()[-1].record.disks] == ["web disk 0", "data"]


async def test_a_vm_without_disks_is_backed_up_as_what_it_is(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("pxe", [])
        assert (await here.run()).exit_code == 0
        assert [point.record.disks for point in here.store.points()] == [[]]
