"""One run of a job: open the store, join the pool, back up every selected VM, say what became of it."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from mover.backup.session import Session
from mover.backup.tags import Owner
from mover.backup.vm import back_up_vm
from mover.errors import MoverError, NotFoundError, PoolError, StoreMissingError, UnreachableError
from mover.events import DiskFinished, Emit, AnyEvent, Note, Outcome, RunFinished, RunStarted, VmFinished, VmStarted
from mover.job import Job, SelectedVm, select_vms
from mover.lock import run_lock
from mover.pipeline.pace import Pace
from mover.store import Store, Writer
from protocol.arena import Arena
from protocol.errors import PoolUnreachableError, ProtocolError
from protocol.nbd import Budget
from protocol.xapi import Pool, Transfers

# 24 slots of 2 MiB: what all disks of a run together hold while it is on the way from a socket to a pack.
_SLOTS = 24


@dataclass(frozen=True)
class VmResult:
    """What became of one VM; `point` is its new restore point."""

    uuid: str
    name: str
    outcome: Outcome
    point: str | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class RunResult:
    """What became of a run."""

    run: str
    vms: tuple[VmResult, ...]
    exit_code: int


class _Totals:
    """Passes events on and adds up what was read and stored."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.read = 0
        self.stored = 0

    def __call__(self, event: AnyEvent) -> None:
        if isinstance(event, DiskFinished):
            self.read += event.read
            self.stored += event.stored
        self._emit(event)


async def run_job(
    job: Job, *, schedule: str | None = None, vms: Sequence[str] = (), full: bool = False, emit: Emit
) -> RunResult:
    """Back up the VMs that `job` selects, or of those the ones in `vms` (names or UUIDs).

    One VM's failure does not stop the others; it is in the result. Raises `MoverError` for what concerns all of them:
    another run of the job is active, no store, no pool, no such VM or schedule.
    """
    started = time.monotonic()
    run = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    totals = _Totals(emit)
    with run_lock(job.name):
        store = _open_store(job, emit)
        async with join_pool(job) as (pool, transfers):
            selected = await _select(job, pool, schedule, vms, full=full)
            totals(
                RunStarted(
                    run=run, job=job.name, schedule=schedule, action="backup", vms=[vm.name for vm in selected]
                )
            )
            with store.writer() as writer, ThreadPoolExecutor(os.cpu_count() or 2, "seal") as executor:
                session = _session(job, run, schedule, pool, transfers, store, writer, executor, totals)
                results = await _all_vms(session, job, schedule, selected)
    result = _judge(run, results)
    totals(
        RunFinished(
            run=run,
            outcome="done" if result.exit_code == 0 else "partial" if result.exit_code == 3 else "failed",
            exit_code=result.exit_code,
            seconds=time.monotonic() - started,
            read=totals.read,
            stored=totals.stored,
        )
    )
    return result
