"""One run of a job: open the store, join the pool, back up every selected VM, say what became of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mover.backup.guard import release_left
from mover.backup.records import PoolRecords, read_records
from mover.backup.session import Session
from mover.backup.tags import Owner
from mover.backup.unfinished import Unfinished, noting_down
from mover.backup.vm import Committed, back_up_vm
from mover.errors import JobError, MoverError, NotFoundError, StoreMissingError, UsageError
from mover.events import AnyEvent, DiskFinished, Emit, Note, Outcome, RunFinished, RunStarted, VmFinished, VmStarted
from mover.failure import as_mover_error
from mover.history import by_vm
from mover.job import Job, PoolSection, ScheduleSection, SelectedVm, read_secret, select_vms
from mover.lock import run_lock
from mover.pipeline.pace import Pace
from mover.retention import has_policy, to_forget
from mover.storage import PASSPHRASE_VARIABLE, create_store, open_store
from mover.store import Store, Writer
from protocol.arena import Arena
from protocol.errors import PoolUnreachableError, XapiError
from protocol.nbd import Budget
from protocol.tasks import task_group
from protocol.xapi import Patience, Pool, Transfers, Trust, connect, open_transfers

# What all disks of a run together hold on its way from a socket to a pack: 24 slots of 2 MiB, or fewer larger ones
# where the store's chunks are larger.
_IN_MEMORY = 48 << 20
_SLOT = 2 << 20
# Seconds between signs of life in the store; a prune gives up who is silent for many of them.
_BEAT = 30.0


@dataclass(frozen=True)
class VmResult:
    """What became of one VM; `point` is its new restore point, `exit_code` what its failure would be alone."""

    uuid: str
    name: str
    outcome: Outcome
    point: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class RunResult:
    """What became of a run."""

    run: str
    vms: tuple[VmResult, ...]

    @property
    def exit_code(self) -> int:
        """0 if all is well; 3 if some VMs are safe; if none is, the first failure's own."""
        failures = [result.exit_code for result in self.vms if result.outcome != "done"]
        if not failures:
            return 0
        return 3 if len(failures) < len(self.vms) else failures[0]

    @property
    def outcome(self) -> Literal["done", "partial", "failed"]:
        """Of the run as a whole."""
        done = {result.outcome == "done" for result in self.vms}
        return "partial" if len(done) == 2 else "failed" if False in done else "done"


async def run_job(
    job: Job, *, schedule: str | None = None, vms: Sequence[str] = (), full: bool = False, emit: Emit
) -> RunResult:
    """Back up the VMs that `job` selects, or of those the ones in `vms` (names or UUIDs).

    `full` reads every disk in full; `schedule` names one of the job's, whose mode holds. One VM's failure does not
    stop the others; it is in the result. Raises `MoverError` for what concerns all of them: another run of the job is
    active, no store, no pool, no such VM or schedule.
    """
    started = time.monotonic()
    run = f"{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    totals = _Totals(emit)
    chosen = chosen_schedule(job, schedule)
    with run_lock(job.name):
        store = _open_or_create(job, totals)
        async with join_pool(job.pool) as (pool, transfers):
            records = await read_records(pool)
            selected = _select(job, records, vms, totals)
            names = [vm.name for vm in selected]
            keeping = {vm.uuid for vm in selected if _keeps_base(job, vm)}
            selected = [with_mode(vm, chosen, full=full) for vm in selected]
            totals(RunStarted(run=run, job=job.name, schedule=schedule, action="backup", vms=names))
            with _writer(store, totals) as writer, ThreadPoolExecutor(os.cpu_count() or 2, "seal") as executor:
                session = _session(job, run, schedule, pool, transfers, store, writer, executor, records, totals)
                async with _signs_of_life(writer), noting_down(session.unfinished, job.limits.note_every):
                    result = RunResult(run, tuple(await _all_vms(session, job, selected, keeping)))
        if result.exit_code == 0 and has_policy(job.retention):
            _retain(job, store, totals)
    totals(
        RunFinished(
            run=run,
            outcome=result.outcome,
            exit_code=result.exit_code,
            seconds=time.monotonic() - started,
            read=totals.read,
            stored=totals.stored,
        )
    )
    return result


async def plan_run(
    job: Job, *, schedule: str | None = None, vms: Sequence[str] = (), full: bool = False
) -> list[SelectedVm]:
    """The VMs that a run would back up, and how, without doing anything. Raises as `run_job` does."""
    chosen = chosen_schedule(job, schedule)
    async with join_pool(job.pool) as (pool, _):
        selected = _select(job, await read_records(pool), vms, lambda event: None)
    return [with_mode(vm, chosen, full=full) for vm in selected]


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


def _retain(job: Job, store: Store, emit: Emit) -> None:
    """Forget what the job's policy does not keep. Failing loses nothing: the next run does it."""
    try:
        forgotten = store.forget(to_forget(store.readable_points()[0], job.name, job.retention, store.lost_roots()))
    except MoverError as error:
        emit(Note(level="warning", message=f"[retention] was not applied: {error}"))
        return
    if forgotten:
        emit(
            Note(level="info", message=f"forgot {len(forgotten)} restore points; `mover prune` gives their space back")
        )


@contextmanager
def _writer(store: Store, emit: Emit) -> Iterator[Writer]:
    """A writer for the run. Every point is committed when it ends: failing then concerns what the next run may find."""
    ended = False
    try:
        with store.writer() as writer:
            yield writer
            ended = True
    except MoverError as error:
        if not ended:
            raise
        message = f"what was read of VMs that failed is not all kept for the next run: {error}"
        emit(Note(level="warning", message=message))


@asynccontextmanager
async def _signs_of_life(writer: Writer) -> AsyncIterator[None]:
    """Renew the writer's lease while nothing may be sealed: waiting for snapshots can take long.

    Failing is not reported here: a writer that is shut out learns it when it seals or commits.
    """

    async def beat(executor: Executor) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            with suppress(MoverError):
                await asyncio.get_running_loop().run_in_executor(executor, writer.renew)

    with ThreadPoolExecutor(1, "lease") as executor:
        async with task_group() as group:
            task = group.create_task(beat(executor))
            try:
                yield
            finally:
                task.cancel()


def chosen_schedule(job: Job, name: str | None) -> ScheduleSection | None:
    """The job's schedule of this name, if one is named. Raises `UsageError` if it has none."""
    if name is None:
        return None
    for schedule in job.schedules:
        if schedule.name == name:
            return schedule
    known = ", ".join(schedule.name for schedule in job.schedules) or "none"
    raise UsageError(f"the job {job.name} has no schedule {name}", f"it has {known}")


def with_mode(vm: SelectedVm, schedule: ScheduleSection | None, *, full: bool) -> SelectedVm:
    """`vm` with the mode of this run: a full if asked for, else that of its schedule, else its own."""
    mode = "full" if full else schedule.mode if schedule else vm.backup.mode
    return dataclasses.replace(vm, backup=dataclasses.replace(vm.backup, mode=mode))


def _open_or_create(job: Job, emit: Emit) -> Store:
    try:
        return open_store(job.store)
    except StoreMissingError:
        store = create_store(job.store)
        emit(Note(level="info", message=f"made a new store at {job.store.url}"))
        if store.config.encrypted:
            lost = "the store is encrypted: whoever loses its passphrase loses it; `mover key add` adds another one"
            emit(Note(level="warning", message=lost))
        return store


@asynccontextmanager
async def join_pool(section: PoolSection) -> AsyncIterator[tuple[Pool, Transfers]]:
    """Log in to the pool of a job. Raises `SecretError`, `UnreachableError`, `JobError` for a bad fingerprint."""
    password = read_secret(
        "the pool's password",
        file=section.password_file,
        env=section.password_env,
        command=section.password_command,
    )
    try:
        if section.fingerprint:
            trust = Trust.pinned(*section.fingerprint)
        elif section.ca_file:
            trust = Trust.ca(Path(section.ca_file))
        else:
            trust = Trust.system()
    except (ValueError, OSError) as error:
        raise JobError(f"[pool]: {error}") from error
    try:
        patience = Patience(away=section.retry_for)
        async with (
            connect(section.url, section.username, password, trust, patience=patience) as pool,
            open_transfers(pool) as transfers,
        ):
            yield pool, transfers
    except (PoolUnreachableError, XapiError) as error:
        raise as_mover_error(error) or error from error


def _select(job: Job, records: PoolRecords, wanted: Sequence[str], emit: Emit) -> list[SelectedVm]:
    return selected_of(job, records, wanted, lambda message: emit(Note(level="warning", message=message)))


def selected_of(job: Job, records: PoolRecords, wanted: Sequence[str], warn: Callable[[str], None]) -> list[SelectedVm]:
    """Those of the VMs that `job` selects which are `wanted` (names or UUIDs; none: all of them).

    Raises `NotFoundError` if there are none.
    """
    selected = select_vms(job, records.vms, records.vbds, records.vdis)
    for number, selector in enumerate(job.vms):
        # A tag that was renamed must not silently end the backups of what had it.
        alone = dataclasses.replace(job, vms=(selector,))
        if selected and not select_vms(alone, records.vms, records.vbds, records.vdis):
            warn(f"the selector vms[{number}] of the job selects no VM")
    if not selected:
        raise NotFoundError(f"the job {job.name} selects no VM of the pool", "check [[vms]] and [exclude]")
    for name in wanted:
        if not any(name in (vm.name, vm.uuid) for vm in selected):
            names = ", ".join(vm.name for vm in selected)
            raise NotFoundError(f"the job {job.name} does not select a VM {name}", f"it selects {names}")
    return [vm for vm in selected if not wanted or vm.name in wanted or vm.uuid in wanted]


def _session(
    job: Job,
    run: str,
    schedule: str | None,
    pool: Pool,
    transfers: Transfers,
    store: Store,
    writer: Writer,
    executor: Executor,
    records: PoolRecords,
    emit: Emit,
) -> Session:
    readable, damaged = store.readable_points()
    for damage in damaged:
        message = f"the restore point {damage.object} is damaged ({damage.reason}): run mover verify"
        emit(Note(level="warning", message=message))
    return Session(
        run=run,
        job=job.name,
        schedule=schedule,
        owner=Owner(job.name, store.config.store_id),
        pool=pool,
        transfers=transfers,
        store=store,
        writer=writer,
        executor=executor,
        arena=_arena(store.chunk_size),
        budget=Budget(job.limits.nbd_connections_per_host),
        observed={},
        pace=Pace(job.limits.read_rate),
        disks=asyncio.Semaphore(job.limits.disks_per_host),
        nbd_connections=job.limits.nbd_connections,
        merge_gaps=job.limits.merge_gaps,
        hooks=job.hooks,
        records=records,
        points=by_vm(readable),
        lost=store.lost_roots(),
        unfinished=Unfinished(store, writer, job.name, run),
        secret_variables=job.secret_variables | {PASSPHRASE_VARIABLE},
        emit=emit,
    )


def _arena(chunk_size: int) -> Arena:
    """Slots that hold whole chunks."""
    slot = max(_SLOT, chunk_size)
    return Arena(_IN_MEMORY // slot, slot)


def _keeps_base(job: Job, vm: SelectedVm) -> bool:
    """Whether the snapshot of `vm`, as the job selects it, stays for later runs.

    With `auto` it does if a schedule of the job can be incremental, or, in a job without schedules, the VM's own mode.
    """
    if vm.backup.keep_snapshot != "auto":
        return vm.backup.keep_snapshot != "none"
    modes = [schedule.mode for schedule in job.schedules] or [vm.backup.mode]
    return any(mode != "full" for mode in modes)


async def _all_vms(session: Session, job: Job, vms: Sequence[SelectedVm], keeping: Collection[str]) -> list[VmResult]:
    room = asyncio.Semaphore(job.limits.vms)
    try:
        await release_left(session)
    except XapiError as error:
        session.emit(Note(level="warning", message=f"what a killed run has blocked cannot be released: {error}"))

    async def one(vm: SelectedVm) -> VmResult:
        # The next one begins once this one is safe: until old snapshots are gone can take long.
        async with AsyncExitStack() as place:
            await place.enter_async_context(room)
            return await _one_vm(session, vm, lambda point: place.aclose(), keep_base=vm.uuid in keeping)

    async with task_group() as group:
        tasks = [group.create_task(one(vm)) for vm in vms]
    return [task.result() for task in tasks]


async def _one_vm(session: Session, vm: SelectedVm, committed: Committed, *, keep_base: bool) -> VmResult:
    started = time.monotonic()
    session.emit(VmStarted(vm=vm.uuid, name=vm.name, strategy=vm.backup.strategy))
    point: str | None = None
    failure: MoverError | None = None
    interrupted = False

    async def note_point(made: str) -> None:
        nonlocal point
        point = made
        await committed(made)

    try:
        await back_up_vm(session, vm, note_point, keep_base=keep_base)
    except asyncio.CancelledError:
        # Once it has its point a VM is safe: what was interrupted is the removal of old snapshots.
        interrupted = point is None
        raise
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with one VM must not stop the others
        failure = as_mover_error(error, f"{vm.name}: ") or MoverError(
            f"{vm.name}: unexpected {type(error).__name__}: {error}",
            "this is a bug; please report it with this trace:\n" + "".join(traceback.format_exception(error)),
        )
    finally:
        outcome: Outcome = "interrupted" if interrupted else "failed" if failure else "done"
        session.emit(
            VmFinished(
                vm=vm.uuid,
                name=vm.name,
                outcome=outcome,
                point=point,
                seconds=time.monotonic() - started,
                error=str(failure) if failure else None,
                hint=failure.hint if failure else None,
            )
        )
    return VmResult(vm.uuid, vm.name, outcome, point, failure.exit_code if failure else 0)
