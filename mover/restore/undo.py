"""A restore that fails leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mover.backup.snapshot import destroy_vdi, destroy_vm
from mover.events import Emit, Note
from mover.restore.vm_record import Record
from protocol.errors import ProtocolError, XapiError
from protocol.xapi import Pool

_Result = TypeVar("_Result")

_CLEAN_UP_TIMEOUT = 60.0
# Seconds for the answer to a call that makes something, once its result is not wanted any more.
_ANSWER_TIMEOUT = 20.0


@dataclass
class Made:
    """What has to go if the restore fails (refs); `unanswered` is, in words, what may be there besides."""

    vm: str | None
    vdis: list[str]
    unanswered: list[str] = field(default_factory=list[str])


async def make_vm(pool: Pool, made: Made, arguments: Record) -> str:
    """A new VM (a ref), noted down in `made` whatever happens."""

    def note(ref: str) -> None:
        made.vm = ref

    return await noted(_create(pool, "VM", arguments), note, made, f"a VM {arguments['name_label']}")


async def make_vdi(pool: Pool, made: Made, arguments: Record) -> str:
    """A new VDI (a ref), noted down in `made` whatever happens."""
    return await noted(_create(pool, "VDI", arguments), made.vdis.append, made, f"a VDI {arguments['name_label']}")


async def _create(pool: Pool, cls: str, arguments: Record) -> str:
    return str(await pool.call(f"{cls}.create", arguments))


async def noted(
    call: Coroutine[Any, Any, _Result], note: Callable[[_Result], object], made: Made, what: str
) -> _Result:
    """The result of a call that makes something or tells what was made; before anything else `note` is given it.

    Such a call goes on in the pool whoever is cancelled here, and only its answer says what there is to undo: it is
    waited for a while all the same. Until then `what` is among what is `unanswered`.
    """
    made.unanswered.append(what)

    async def ask() -> _Result | ProtocolError:
        try:
            result = await call
        except ProtocolError as error:
            if isinstance(error, XapiError):
                made.unanswered.remove(what)
            # Not raised here: a group whose task fails forgets that it was cancelled.
            return error
        made.unanswered.remove(what)
        note(result)
        return result

    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask())
        try:
            await asyncio.wait({asking})
        except asyncio.CancelledError:
            await asyncio.wait({asking}, timeout=_ANSWER_TIMEOUT)
            raise
    answer = asking.result()
    if isinstance(answer, ProtocolError):
        raise answer
    return answer


@asynccontextmanager
async def undone_on_failure(pool: Pool, emit: Emit, *, keep: bool = False) -> AsyncIterator[Made]:
    """Give the block what to note down in; if it fails, all of that is destroyed, or with `keep` only named."""
    made = Made(None, [])
    try:
        yield made
    except BaseException:
        if made.unanswered:
            what = ", ".join(made.unanswered)
            emit(
                Note(level="warning", message=f"the pool has not said whether it made this; look for it there: {what}")
            )
        if keep:
            emit(Note(level="warning", message=f"what the failed restore made is kept: {await _named(pool, made)}"))
            raise
        try:
            async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                if made.vm:
                    await destroy_vm(pool, made.vm)
                for vdi in made.vdis:
                    await destroy_vdi(pool, vdi)
        except (ProtocolError, TimeoutError) as error:
            left = f"VM {made.vm}, VDIs {', '.join(made.vdis) or 'none'}"
            emit(Note(level="warning", message=f"the failed restore could not be undone ({error}); left: {left}"))
        raise


async def _named(pool: Pool, made: Made) -> str:
    """By UUID, as people look things up; by reference, if the pool does not answer."""
    try:
        async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
            vm = await pool.call("VM.get_uuid", made.vm) if made.vm else "none"
            vdis = [str(await pool.call("VDI.get_uuid", vdi)) for vdi in made.vdis]
    except (ProtocolError, TimeoutError):
        vm, vdis = made.vm or "none", made.vdis
    return f"VM {vm}, VDIs {', '.join(vdis) or 'none'}"
