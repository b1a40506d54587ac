"""Keeping a VM where it is while it is backed up: migration is blocked on the pool, and released afterwards.

A block is a reason in `blocked_operations` that names the job, so that one which a killed run has left is known and
released by the next run. What somebody else has blocked stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mover.backup.session import Session
from mover.errors import MigratingError
from mover.events import Note
from mover.job import SelectedVm
from protocol.errors import PoolUnreachableError, XapiError
from protocol.xapi import Pool

MOVES = ("migrate_send", "pool_migrate")
# How long releasing may take once a backup was interrupted.
_TIMEOUT = 30.0


@asynccontextmanager
async def staying(session: Session, vm: SelectedVm) -> AsyncIterator[None]:
    """Block the VM's migration within the context.

    The block stands before the snapshot is taken: a migration that begins after the look at what is under way would
    have the snapshot refused, or the disks elsewhere. So the snapshot remembers the block, and a VM that is reverted to
    it is blocked again until `release_left`.

    A pool that does not let us (the right to is `vm-admin`'s) is a warning. Raises `MigratingError` if the VM is on its
    way already.
    """
    pool = session.pool
    under_way = (await pool.call("VM.get_current_operations", vm.ref)).values()
    if any(operation in MOVES for operation in under_way):
        raise MigratingError(f"{vm.name} is being migrated", "run the job again once it has arrived")
    try:
        # Whoever interrupts this may find one operation blocked and the other one not.
        try:
            await _block(session, vm.ref)
        except XapiError as error:
            message = f"the VM's migration cannot be blocked while it is backed up: {error}"
            session.emit(Note(level="warning", vm=vm.uuid, message=message))
        yield
    except asyncio.CancelledError:
        session.pool.hurry()
        raise
    finally:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await _release(session, vm.ref)
        except (XapiError, PoolUnreachableError, TimeoutError) as error:
            why = str(error) or f"that took longer than {_TIMEOUT:g} s"
            message = f"the VM's migration stays blocked until the next run: {why}"
            session.emit(Note(level="warning", vm=vm.uuid, message=message))


async def release_left(session: Session) -> None:
    """Release what earlier runs of this job, that were killed, have left blocked on any VM. Raises `XapiError`."""
    for ref, record in session.records.vms.items():
        if any(session.owner.blocked(reason) for reason in record["blocked_operations"].values()):
            await _release(session, ref)


async def _block(session: Session, vm: str) -> None:
    blocked = await session.pool.call("VM.get_blocked_operations", vm)
    for operation in MOVES:
        if operation not in blocked:
            await _add(session.pool, vm, operation, session.owner.block_reason(session.run))
    await _update(session.pool, vm)


async def _add(pool: Pool, vm: str, operation: str, reason: str) -> None:
    try:
        await pool.call("VM.add_to_blocked_operations", vm, operation, reason, repeatable=True)
    except XapiError as error:
        # Blocked by the same call, of which the answer got lost, or by somebody else in this moment.
        if error.code != "MAP_DUPLICATE_KEY":
            raise


async def _release(session: Session, vm: str) -> None:
    for operation, reason in (await session.pool.call("VM.get_blocked_operations", vm)).items():
        if session.owner.blocked(reason):
            await session.pool.call("VM.remove_from_blocked_operations", vm, operation, repeatable=True)
    await _update(session.pool, vm)


async def _update(pool: Pool, vm: str) -> None:
    """Have clients of the pool see it; what is blocked is blocked all the same."""
    try:
        await pool.call("VM.update_allowed_operations", vm, repeatable=True)
    except XapiError as error:
        if error.code not in {"MESSAGE_METHOD_UNKNOWN", "RBAC_PERMISSION_DENIED"}:
            raise
