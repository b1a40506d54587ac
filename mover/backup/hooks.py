"""Commands of the operator around a VM's snapshot, on this machine: a list, no shell, bounded in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mover.backup.session import Session
from mover.errors import HookError
from mover.events import Note
from mover.job import HooksSection, SelectedVm

# What of a command's output reaches the log: its end, where the reason for a failure stands.
_OUTPUT = 4000


@asynccontextmanager
async def around_snapshot(session: Session, hooks: HooksSection, vm: SelectedVm) -> AsyncIterator[None]:
    """Run the pre-snapshot command before the block and the post-snapshot command after it, whatever happens in it.

    With `on_failure = "fail"` a failing command raises `HookError`, before the snapshot if it is the first; otherwise
    it is a warning.
    """
    failed = False
    try:
        await _run(session, hooks, vm, "pre-snapshot", hooks.pre_snapshot)
        yield
    except BaseException:
        failed = True
        raise
    finally:
        try:
            await _run(session, hooks, vm, "post-snapshot", hooks.post_snapshot)
        except HookError as error:
            # What failed first is what the operator has to see; the thaw's failure must not hide it.
            if not failed:
                raise
            session.emit(Note(level="warning", vm=vm.uuid, message=str(error)))


async def _run(
    session: Session, hooks: HooksSection, vm: SelectedVm, phase: str, command: Sequence[str] | None
) -> None:
    if command is None:
        return
    problem = await _problem(session, hooks, vm, phase, command)
    if problem is None:
        return
    message = f"{vm.name}: the {phase} command {command[0]} {problem}"
    if hooks.on_failure == "fail":
        raise HookError(message, 'mend it, or set on-failure = "continue" in [hooks]')
    session.emit(Note(level="warning", vm=vm.uuid, message=message))


async def _problem(
    session: Session, hooks: HooksSection, vm: SelectedVm, phase: str, command: Sequence[str]
) -> str | None:
    """Run a command; None if it succeeded, else what it did."""
    about = {
        "MOVER_VM_UUID": vm.uuid,
        "MOVER_VM_NAME": vm.name,
        "MOVER_JOB": session.job,
        "MOVER_RUN": session.run,
        "MOVER_PHASE": phase,
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={name: value for name, value in os.environ.items() if name not in session.secret_variables} | about,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(hooks.timeout):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"did not end within {hooks.timeout:g} s and was stopped"
    finally:
        if process.returncode is None:
            # The whole group: what the command started must not outlive it.
            os.killpg(process.pid, 9)
            await process.wait()
    said = output[-_OUTPUT:].decode(errors="replace").strip()
    if said:
        session.emit(Note(level="info", vm=vm.uuid, message=f"{phase}: {said}"))
    return None if process.returncode == 0 else f"ended with exit code {process.returncode}"
