"""Restores that are interrupted or refused at an awkward moment: nothing is left that nobody names."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mover.errors import PoolError, UnreachableError
from mover.restore import undo
from mover.restore.options import RestoreOptions
from mover.restore.pool import restore_to_pool
from mover.restore.single import restore_as_vdis
from mover.run import join_pool
from mover.simulator.faults import CallFault
from protocol.xapi.channel import Channel
from tests.pool_fixtures import MiB, Site, fill_some, site


async def backed_up(here: Site) -> None:
    vm = here.simulator.make_vm("web", [4 * MiB], names=["root"])
    fill_some(here, here.simulator.vdis_of(vm))
    assert (await here.run()).exit_code == 0, here.events
    here.events = []


async def restore(here: Site, **options: Any) -> object:
    point = here.store.point("latest")
    async with join_pool(here.job().pool) as (pool, transfers):
        return await restore_to_pool(here.store, point, pool, transfers, RestoreOptions(**options), here.events.append)


async def as_vdis(here: Site) -> object:
    point = here.store.point("latest")
    async with join_pool(here.job().pool) as (pool, transfers):
        return await restore_as_vdis(here.store, point, pool, transfers, [], None, here.events.append)


def objects(here: Site) -> set[str]:
    """References of all VMs and VDIs."""
    return {*here.simulator.pool.database.refs("VM"), *here.simulator.pool.database.refs("VDI")}


def left_by(here: Site, before: set[str]) -> list[dict[str, Any]]:
    database = here.simulator.pool.database
    new = objects(here) - before
    return [fields for cls in ("VM", "VDI") for ref, fields in database.items(cls) if ref in new]


def answering_late(monkeypatch: pytest.MonkeyPatch, late: str, seconds: float) -> asyncio.Event:
    """The answers to calls of `late` take so long; set as soon as the pool has done what one of them asks for."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    call: Callable[..., Any] = Channel.call

    def slow(self: Channel, method: str, *rest: Any) -> Any:
        answer = call(self, method, *rest)
        if method == late:
            loop.call_soon_threadsafe(done.set)
            time.sleep(seconds)
        return answer

    monkeypatch.setattr(Channel, "call", slow)
    return done


async def interrupted(restoring: Any, moment: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(restoring)
        async with asyncio.timeout(30):
            await moment.wait()
        task.cancel()
    assert task.cancelled()


@pytest.mark.parametrize(
    ("how", "call"),
    [(restore, "VDI.create"), (restore, "VM.create"), (as_vdis, "VDI.create")],
    ids=["a VDI of a VM", "a VM", "a VDI alone"],
)
async def test_interrupted_while_the_pool_makes_something_it_takes_that_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Site], Any], call: str
):
    async with site(tmp_path) as here:
        await backed_up(here)
        before = objects(here)
        await interrupted(how(here), answering_late(monkeypatch, call, 0.7))
        assert left_by(here, before) == []
        assert here.notes() == []


@pytest.mark.parametrize(("call", "what"), [("VDI.create", "a VDI root"), ("VM.create", "a VM [restoring] web")])
async def test_what_the_pool_may_have_made_without_saying_so_in_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, what: str
):
    monkeypatch.setattr(undo, "_ANSWER_TIMEOUT", 0.2)
    async with site(tmp_path) as here:
        await backed_up(here)
        before = objects(here)
        await interrupted(restore(here), answering_late(monkeypatch, call, 1.5))
        (left,) = left_by(here, before)
        (warned,) = here.notes()
        assert f"look for it there: {what}" in warned
        assert left["name_label"] in warned


async def test_a_lost_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with site(tmp_path) as here:
        await backed_up(here)
        call: Callable[..., Any] = Channel.call

        def lost(self: Channel, method: str, *rest: Any) -> Any:
            answer = call(self, method, *rest)
            if method == "VDI.create":
                raise self._lost(method, "reset")
            return answer

        monkeypatch.setattr(Channel, "call", lost)
        with pytest.raises(UnreachableError):
            await restore(here)
        (warned,) = here.notes()
        assert "look for it there: a VDI root" in warned


async def test_an_imported_vm_that_cannot_be_kept_from_starting_leaves_no_disks(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        before = objects(here)
        here.simulator.faults.arm(CallFault("VM.add_to_blocked_operations", "RBAC_PERMISSION_DENIED", ("x", "")))
        with pytest.raises(PoolError, match="RBAC_PERMISSION_DENIED"):
            await restore(here, via="xva")
        assert left_by(here, before) == []


async def test_what_is_kept_of_an_imported_vm_is_named_with_its_disks(tmp_path: Path):
    async with site(tmp_path) as here:
        await backed_up(here)
        before = objects(here)
        here.simulator.faults.arm(CallFault("VM.add_to_blocked_operations", "RBAC_PERMISSION_DENIED", ("x", "")))
        with pytest.raises(PoolError, match="RBAC_PERMISSION_DENIED"):
            await restore(here, via="xva", keep_partial=True)
        left = left_by(here, before)
        (warned,) = here.notes()
        assert len(left) == 2
        assert all(fields["uuid"] in warned for fields in left)


async def test_interrupted_right_after_an_import_its_disks_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with site(tmp_path) as here:
        await backed_up(here)
        before = objects(here)
        await interrupted(restore(here, via="xva"), answering_late(monkeypatch, "VM.get_VBDs", 0.7))
        assert left_by(here, before) == []
