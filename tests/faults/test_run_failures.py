"""What goes wrong in the middle of a run: message, exit code, what it leaves, and what the next run makes of that.

Each is the real command in a process of its own, before a simulated pool. Sessions are also lost before every single
call of a run, in this process.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from mover.simulator import Options
from mover.simulator.faults import CallFault
from tests.odd_machine import tell
from tests.operator_site import Ended, operator
from tests.pool_fixtures import MiB, Site, fill_some, site

SIZE = 20 * MiB
HOUR = 3600.0
_EVERY = 7


async def master_dies(here: Site) -> None:
    """It takes all sessions and tasks along: they are kept in its memory."""
    await here.simulator.stop_host(0)
    here.simulator.pool.tasks.drop_all()
    here.simulator.expire_sessions()


def assert_failed(ended: Ended, vm: str, begins: str, *, hint: str) -> None:
    """A VM failed, with a message that begins like this, and a hint that holds these words."""
    outcome = ended.outcome(vm)
    assert outcome["outcome"] == "failed"
    assert outcome["error"].startswith(begins), outcome["error"]
    assert hint in outcome["hint"], outcome["hint"]


# -- the pool ---------------------------------------------------------------------------------------------------------


async def test_the_master_is_gone_for_good(tmp_path: Path):
    async with operator(tmp_path, Options(hosts=1), pool='retry-for = "1s"') as one:
        disks = {"a": one.vm("a", [3 * SIZE]), "b": one.vm("b", [SIZE])}
        tell(one.odd, pauses=0.1)
        # Late enough for a page of the disk's tree, 8 MiB, to be written: what is in none is read again.
        ended = await one.run({("disk.progress", 5, one.uuid("a")): lambda: master_dies(one.here)})
        assert ended.code == 20
        gone = f"cannot reach the pool at {one.here.simulator.url}: Connection refused"
        assert_failed(ended, "a", f"a: disk 0 (a disk 0): {gone}", hint="the pool's master up?")
        assert_failed(ended, "b", f"b: {gone}", hint="the pool's master up?")
        assert f"the snapshot could not be removed and will be swept by the next run: {gone}" in ended.warnings
        assert f"the VM's migration stays blocked until the next run: {gone}" in ended.warnings
        await one.here.simulator.start_host(0)
        again = await one.run()
        assert again.code == 0, again.said
        assert any("going on from there" in note["message"] for note in again.of("note"))
        await one.assert_well(disks)


async def test_the_master_is_gone_for_a_while(tmp_path: Path):
    async with operator(tmp_path, Options(hosts=1)) as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b")}
        ended = await one.run(
            {
                ("disk.progress", 2, one.uuid("a")): lambda: master_dies(one.here),
                ("retry", 1, ""): lambda: one.here.simulator.start_host(0),
            }
        )
        assert ended.code == 0, ended.said
        await one.assert_well(disks)


async def test_the_master_is_gone_and_another_host_serves_the_disk_to_its_end(tmp_path: Path):
    async with operator(tmp_path, pool='retry-for = "1s"') as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b")}
        ended = await one.run({("disk.progress", 2, one.uuid("a")): lambda: master_dies(one.here)})
        assert ended.code == 3
        assert ended.outcome("a")["outcome"] == "done"
        assert_failed(ended, "b", "b: cannot reach the pool at ", hint="the pool's master up?")
        await one.here.simulator.start_host(0)
        again = await one.run()
        assert again.code == 0, again.said
        assert {one["mode"] for one in again.of("disk.finished")} == {"incremental", "full"}
        await one.assert_well(disks)


async def test_the_host_of_the_storage_is_gone(tmp_path: Path):
    async with operator(tmp_path, Options(local_sr=True)) as one:
        database = one.here.simulator.pool.database
        (local,) = [ref for ref, record in database.items("SR") if record["name_label"] == "Local storage"]
        disks = {"far": one.vm("far", [SIZE], local), "near": one.vm("near", [SIZE])}
        tell(one.odd, pauses=0.1)
        ended = await one.run({("disk.progress", 2, one.uuid("far")): lambda: one.here.simulator.stop_host(1)})
        assert ended.code == 3
        assert_failed(
            ended, "far", "far: disk 0 (far disk 0): NBD server (none): no connection is left; ", hint="xe pbd-list"
        )
        assert "no host offers this disk over NBD" in ended.outcome("far")["error"]
        assert ended.outcome("near")["outcome"] == "done", "the others go on"
        assert any("will be swept by the next run: VDI.destroy: HOST_OFFLINE" in said for said in ended.warnings)
        down = await one.run()
        assert down.code == 3
        assert_failed(down, "far", "far: V", hint="start the host that the disk's storage belongs to")
        assert "HOST_OFFLINE" in down.outcome("far")["error"]
        await one.here.simulator.start_host(1)
        again = await one.run()
        assert again.code == 0, again.said
        await one.assert_well(disks)


# -- the session ------------------------------------------------------------------------------------------------------


async def test_the_session_expires_while_a_disk_is_read(tmp_path: Path):
    async with operator(tmp_path) as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b")}
        ended = await one.run({("disk.progress", 2, one.uuid("a")): one.here.simulator.expire_sessions})
        assert ended.code == 0, ended.said
        assert ended.warnings == []
        await one.assert_well(disks)


async def test_the_session_expires_and_the_password_is_another_one(tmp_path: Path):
    async with operator(tmp_path) as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b")}

        def expire() -> None:
            refused = ("root", "Authentication failure")
            fault = CallFault("session.login_with_password", "SESSION_AUTHENTICATION_FAILED", refused, times=1000)
            one.here.simulator.faults.arm(fault)
            one.here.simulator.expire_sessions()

        ended = await one.run({("disk.progress", 2, one.uuid("a")): expire})
        assert ended.code == 3
        assert ended.outcome("a")["outcome"] == "done", "what is being read needs no session"
        refused = "session.login_with_password: SESSION_AUTHENTICATION_FAILED"
        assert_failed(ended, "b", f"b: {refused}", hint="check username and the password's source in [pool]")
        one.here.simulator.faults.clear()
        again = await one.run()
        assert again.code == 0, again.said
        await one.assert_well(disks)


@pytest.mark.parametrize("first", range(_EVERY))
async def test_the_session_is_gone_before_any_call(tmp_path: Path, first: int):
    """Once in so many calls; among all these tests before each call of a run that makes the same ones."""
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [2 * MiB]))
        fill_some(here, [vdi])
        sessions, check = here.simulator.pool.sessions, here.simulator.pool.sessions.check
        calls = -first

        def count(ref: str) -> None:
            nonlocal calls
            calls += 1
            if calls > 0 and calls % _EVERY == 0:
                here.simulator.expire_sessions()
            check(ref)

        sessions.check = count  # type: ignore[method-assign]
        for mode in ("full", "incremental"):
            result = await here.run()
            assert result.exit_code == 0, here.events
            assert here.notes() == []
            assert [plan.mode for plan in here.planned()] == [mode]
        assert calls > 60
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


# -- the run itself ---------------------------------------------------------------------------------------------------


async def test_a_run_that_is_killed_leaves_a_vm_blocked_and_the_next_one_releases_it(tmp_path: Path):
    async with operator(tmp_path) as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b")}
        ended = await one.run({("disk.progress", 2, one.uuid("a")): lambda: one.signal(signal.SIGKILL)})
        assert ended.code == -9
        assert one.blocked() == {"a": {"migrate_send", "pool_migrate"}}
        assert len(one.here.snapshots()) == 1
        # Also if it does not come to that VM: what it left is released before anything else.
        one.here.simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "no space", "")))
        again = await one.run(None, "--vm", "b")
        assert again.code == 23
        assert one.blocked() == {}
        # A session that nobody has ended the pool itself ends after a day.
        one.here.simulator.expire_sessions()
        last = await one.run()
        assert last.code == 0, last.said
        await one.assert_well(disks)


async def test_who_interrupts_a_run_has_a_clean_pool_and_the_next_run_finds_what_was_stored(tmp_path: Path):
    async with operator(tmp_path) as one:
        # By the third report it was noted down how far the run is, and what it had until then is durable.
        disks = {"a": one.vm("a", [2 * SIZE])}
        ended = await one.run({("disk.progress", 3, one.uuid("a")): lambda: one.signal(signal.SIGINT)})
        assert ended.code == 130
        assert ended.said == [
            "stopping: cleaning up; once more to stop at once",
            "interrupted; everything is left clean",
        ]
        assert one.untidy() == []
        again = await one.run()
        assert again.code == 0, again.said
        (found,) = again.of("disk.finished")
        assert found["known"] >= 2 * MiB
        await one.assert_well(disks)


async def test_who_interrupts_a_run_whose_pool_is_away_does_not_wait_for_the_pool(tmp_path: Path):
    async with operator(tmp_path, Options(hosts=1)) as one:
        disks = {"a": one.vm("a", [SIZE])}
        ended = await one.run(
            {
                ("disk.progress", 2, one.uuid("a")): lambda: master_dies(one.here),
                ("retry", 1, ""): lambda: one.signal(signal.SIGTERM),
            }
        )
        assert ended.code == 143
        assert ended.said[-1] == "interrupted; what is left is among the warnings"
        away = f"cannot reach the pool at {one.here.simulator.url}: Connection refused"
        assert ended.warnings == [
            f"the snapshot could not be removed and will be swept by the next run: {away}",
            f"the VM's migration stays blocked until the next run: {away}",
        ]
        await one.here.simulator.start_host(0)
        again = await one.run()
        assert again.code == 0, again.said
        await one.assert_well(disks)


# -- the store --------------------------------------------------------------------------------------------------------

STORE = {
    errno.ENOSPC: ("no space left", "make room there; what is stored is intact"),
    errno.EROFS: ("it is read-only", "mount it for writing; what is stored is intact"),
}


@pytest.mark.parametrize("code", STORE, ids=errno.errorcode.get)
async def test_the_store_takes_no_more(tmp_path: Path, code: int):
    why, hint = STORE[code]
    async with operator(tmp_path) as one:
        disks = {name: one.vm(name, [SIZE]) for name in ("a", "b", "c")}
        ended = await one.run({("disk.progress", 2, one.uuid("b")): lambda: tell(one.odd, store=code)})
        assert ended.code == 3
        assert ended.outcome("a")["outcome"] == "done"
        for name in ("b", "c"):
            begins = f"{name}: the store at {tmp_path}/store takes no more: {why} (writing packs/"
            assert_failed(ended, name, begins, hint=hint)
        assert ended.of("disk.planned", one.uuid("c")) == [], "nothing is done to a VM that cannot be stored"
        assert one.untidy() == []

        still = await one.run()
        assert still.code == 14
        assert still.of("vm.started") == []
        assert still.said[0].startswith(f"error: the store at {tmp_path}/store takes no more: {why} (writing lease/")
        assert still.said[1].startswith("hint: ") and hint in still.said[1]
        assert one.untidy() == []

        tell(one.odd)
        again = await one.run()
        assert again.code == 0, again.said
        (found,) = again.of("disk.finished", one.uuid("b"))
        assert found["known"] >= 2 * MiB, "what had been stored is not stored again"
        await one.assert_well(disks)


# -- the clock --------------------------------------------------------------------------------------------------------


async def test_the_clock_jumps_within_runs_and_between_them(tmp_path: Path):
    """Whatever it says, the newest point is the newest: for restores, for retention, and for the next incremental."""
    async with operator(tmp_path, more="[retention]\nkeep-last = 2") as one:
        (vdi,) = one.vm("web", [SIZE])
        uuid = one.uuid("web")
        # What the clock says when the run begins, and once its disk is being read.
        jumps = [(0.0, 5 * HOUR), (5 * HOUR, -3 * HOUR), (-3 * HOUR, 0.0), (0.0, 0.0), (9 * HOUR, 9 * HOUR)]
        warned: list[bool] = []
        for number, (before, then) in enumerate(jumps):
            tell(one.odd, clock=before)
            ended = await one.run({("disk.planned", 1, uuid): lambda then=then: tell(one.odd, clock=then)})
            assert ended.code == 0, ended.said
            assert [disk["mode"] for disk in ended.of("disk.finished")] == ["incremental" if number else "full"]
            await one.assert_well({"web": [vdi]})
            assert len(one.here.store.points()) == min(number + 1, 2)
            warned.append(any("this machine's clock is " in said for said in ended.warnings))
            one.here.simulator.guest(vdi).scatter(3, 4096)
        # The second run's snapshot is dated five hours ahead of what follows.
        assert warned == [False, False, True, True, False]
