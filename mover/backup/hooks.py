"""Commands of the operator around a VM's snapshot, on this machine: a list, no shell, bounded in time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from mover.backup.session import Session
from mover.errors import HookError
from mover.events import Note
from mover.job import HooksSection, SelectedVm

# What of a command's output reaches the log: its end, where the reason for a failure stands.
_OUTPUT = 4000
# Seconds for the rest of the output once the command has ended.
_LAST_WORDS = 1.0


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
    """Run a command; None if it succeeded, else what it did. What it said goes to the log either way."""
    about = {
        "MOVER_VM_UUID": vm.uuid,
        "MOVER_VM_NAME": vm.name,
        "MOVER_JOB": session.job,
        "MOVER_RUN": session.run,
        "MOVER_PHASE": phase,
    }
    ours = {name: value for name, value in os.environ.items() if name not in session.secret_variables}
    async with _listening() as (tail, output):
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=ours | about,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        finally:
            os.close(output)
        problem = await _end_of(process, hooks.timeout)
        # What it has left running in the background, to thaw in any case, may hold its output open.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await tail.ended.wait()
    if said := tail.said.decode(errors="replace").strip():
        session.emit(Note(level="info", vm=vm.uuid, message=f"{phase}: {said}"))
    return problem


async def _end_of(process: asyncio.subprocess.Process, timeout: float) -> str | None:
    """Wait for a command's end, or stop it; None if it succeeded, else what it did."""
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
    except TimeoutError:
        return f"did not end within {timeout:g} s and was stopped"
    finally:
        if process.returncode is None:
            # The whole group: what the command started must not outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return None if code == 0 else f"ended with exit code {code}"


class _Tail(asyncio.Protocol):
    """Keeps the end of what comes through a pipe."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.said += data
        del self.said[:-_OUTPUT]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


@asynccontextmanager
async def _listening() -> AsyncIterator[tuple[_Tail, int]]:
    """A pipe: what comes out of it, and the descriptor to write to, which is the caller's to close."""
    read, write = os.pipe()
    transport, tail = await asyncio.get_running_loop().connect_read_pipe(_Tail, os.fdopen(read, "rb", buffering=0))
    try:
        yield tail, write
    finally:
        transport.close()
