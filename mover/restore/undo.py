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
async def undone_on_failure(pool: Pool, emit: Emit) -> AsyncIterator[Made]:
    made = Made(None, [])
    try:
        yield made
    except BaseException:
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
