"""Commands of the operator around a snapshot: when they run, what they are told, and what becomes of what they do."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from mover.events import DiskPlanned, Note, VmFinished
from mover.job import Job
from mover.run import run_job
from mover.simulator.faults import CallFault
from protocol.tasks import task_group
from tests.operator_site import operator
from tests.pool_fixtures import MiB, Site, site
from tests.simulator_fixtures import in_thread


def hooked(here: Site, script: str, *, phases: str = "pre-snapshot post-snapshot", more: str = "") -> Job:
    """A job whose commands are this shell script; a job itself knows no shell."""
    path = here.folder / "hook"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    commands = "".join(f'{phase} = ["{path}", "an argument; exit 9"]\n' for phase in phases.split())
    return here.job(f"[hooks]\n{commands}{more}")


def noted(here: Site) -> list[str]:
    return [event.message for event in here.events if isinstance(event, Note)]


def failure(here: Site) -> str:
    (ended,) = [event for event in here.events if isinstance(event, VmFinished)]
    return str(ended.error)


async def test_they_run_around_the_snapshot_and_are_told_what_it_is_about(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MOVER_PASSPHRASE", "nobody's business")
    async with site(tmp_path) as here:
        uuid = here.simulator.pool.database.get("VM", here.simulator.make_vm("web", [2 * MiB]))["uuid"]
        said = tmp_path / "said"
        told = (
            '"$#" "$1" "$MOVER_PHASE" "$MOVER_VM_NAME" "$MOVER_VM_UUID" "$MOVER_JOB" "$MOVER_RUN" "$MOVER_PASSPHRASE"'
        )
        result = await here.run(hooked(here, f"printf '%s|' {told} >> {said}\necho >> {said}"))
        assert result.exit_code == 0
        assert said.read_text().splitlines() == [
            f"1|an argument; exit 9|{phase}|web|{uuid}|test|{result.run}||"
            for phase in ("pre-snapshot", "post-snapshot")
        ]


async def test_the_snapshot_is_taken_between_them_and_the_disks_are_read_after(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        order: list[str] = []
        take = here.simulator.faults.take_call

        def called(method: str) -> CallFault | None:
            if method == "VM.snapshot":
                order.append(method)
            return take(method)

        here.simulator.faults.take_call = called  # type: ignore[method-assign]

        def heard(event: object) -> None:
            if isinstance(event, DiskPlanned):
                order.append("read")
            elif isinstance(event, Note) and "snapshot: " in event.message:
                order.append(event.message)

        assert (await run_job(hooked(here, "echo now"), emit=heard)).exit_code == 0
        assert order == ["pre-snapshot: now", "VM.snapshot", "post-snapshot: now", "read"]


async def test_what_they_say_is_in_the_log(tmp_path: Path):
    async with operator(tmp_path, more=f'[report]\nlog = "{tmp_path}/{{job}}.jsonl"\n[hooks]') as one:
        one.vm("web", [MiB])
        text = one.job.read_text() + 'pre-snapshot = ["sh", "-c", "echo frozen; echo but slowly >&2"]\n'
        one.job.write_text(text)
        assert (await one.run()).code == 0
        lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
        assert "pre-snapshot: frozen\nbut slowly" in [line.get("message") for line in lines]


async def test_the_end_of_what_they_say_is_kept(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        assert (await here.run(hooked(here, "seq 200000; echo end", phases="pre-snapshot"))).exit_code == 0
        (said,) = [note for note in noted(here) if note.startswith("pre-snapshot: ")]
        assert said.endswith("200000\nend") and len(said) < 5000


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ('["false"]', "ended with exit code 1"),
        ('["/no/such/program"]', "cannot be run: No such file or directory"),
        ('["sleep", "60"]', "did not end within 0.3 s and was stopped"),
    ],
)
@pytest.mark.parametrize("phase", ["pre-snapshot", "post-snapshot"])
async def test_one_that_fails_fails_the_vm_or_is_a_warning(tmp_path: Path, phase: str, command: str, words: str):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        hooks = f'[hooks]\n{phase} = {command}\ntimeout = "0.3s"\n'
        assert (await here.run(here.job(hooks))).exit_code == 24
        assert failure(here).startswith(f"web: the {phase} command ") and failure(here).endswith(words)
        assert here.snapshots() == []
        assert here.store.points() == []
        assert (await here.run(here.job(hooks + 'on-failure = "continue"\n'))).exit_code == 0
        assert any(phase in note and note.endswith(words) for note in here.notes())


async def test_the_second_runs_though_the_first_or_the_snapshot_failed(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        said = tmp_path / "said"
        job = hooked(here, f'echo "$MOVER_PHASE" >> {said}; test "$MOVER_PHASE" = post-snapshot')
        assert (await here.run(job)).exit_code == 24
        assert said.read_text().split() == ["pre-snapshot", "post-snapshot"]
        said.unlink()
        here.simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "no space", "")))
        assert (await here.run(hooked(here, f'echo "$MOVER_PHASE" >> {said}'))).exit_code == 23
        assert said.read_text().split() == ["pre-snapshot", "post-snapshot"]


async def test_what_failed_first_is_what_is_said_of_the_vm(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        here.simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "no space", "")))
        assert (await here.run(hooked(here, "exit 5", phases="post-snapshot"))).exit_code == 23
        assert "SR_BACKEND_FAILURE_44" in failure(here)
        assert any("post-snapshot" in note and "exit code 5" in note for note in here.notes())


def runs(pid: Path) -> bool:
    """Whether the process whose number is in a file is still there (and not just waiting to be forgotten)."""
    try:
        return " Z " not in Path(f"/proc/{int(pid.read_text())}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_one_that_hangs_is_stopped_with_all_it_has_started(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        pid = tmp_path / "pid"
        job = hooked(
            here, f"sleep 60 & echo $! > {pid}; echo waiting; wait", phases="pre-snapshot", more='timeout = "1s"'
        )
        assert (await here.run(job)).exit_code == 24
        assert "pre-snapshot: waiting" in noted(here), "what it said until then may be why"
        assert not runs(pid)


async def test_what_one_leaves_in_the_background_is_not_waited_for(tmp_path: Path):
    """As a freeze that thaws by itself after a minute, whatever happens."""
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        pid = tmp_path / "pid"
        job = hooked(here, f"sleep 60 & echo $! > {pid}; echo frozen", phases="pre-snapshot")
        try:
            async with asyncio.timeout(30):
                assert (await here.run(job)).exit_code == 0
            assert "pre-snapshot: frozen" in noted(here)
            assert runs(pid)
        finally:
            os.kill(int(pid.read_text()), 9)


async def test_an_interrupted_run_thaws(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        said, fifo = tmp_path / "said", tmp_path / "frozen"
        os.mkfifo(fifo)
        job = hooked(here, f'echo "$MOVER_PHASE" >> {said}; test "$MOVER_PHASE" = post-snapshot || exec cat {fifo}')
        async with task_group() as group:
            task = group.create_task(run_job(job, emit=here.events.append))
            # Opened once the command has: it is in the middle of freezing then.
            descriptor = await in_thread(os.open, fifo, os.O_WRONLY)
            task.cancel()
        os.close(descriptor)
        assert task.cancelled()
        assert said.read_text().split() == ["pre-snapshot", "post-snapshot"]
        assert here.snapshots() == []
