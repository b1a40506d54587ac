"""A restore that fails leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mover.backup.snapshot import destroy_vdi, destroy_vm
from mover.events import Emit, Note
from protocol.errors import ProtocolError
from protocol.xapi import Pool

_CLEAN_UP_TIMEOUT = 60.0


@dataclass
class Made:
    """What has to go if the restore fails."""

    vm: str | None
    vdis: list[str]


@asynccontextmanager
async def undone_on_failure(pool: Pool, emit: Emit, *, keep: bool = False) -> AsyncIterator[Made]:
    """Give the block what to note down in; if it fails, all of that is destroyed, or with `keep` only named."""
    made = Made(None, [])
    try:
        yield made
    except BaseException:
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
