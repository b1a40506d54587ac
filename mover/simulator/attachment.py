"""Disks plugged into control domains: for NBD clients and for bulk transfers.

A VBD appears while the disk is used. What was read stays plugged for a moment after: who destroys the disk right away
is told that it is in use (xen-api issue 4339).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mover.simulator.failure import Failure, storage_failure
from mover.simulator.nbd import Backend, open_disk
from mover.simulator.pool import Host, Pool
from mover.simulator.values import NULL
from mover.simulator.vdi import refuse_metadata


class Attachments:
    """The disks that the control domain of one host has plugged."""

    def __init__(self, pool: Pool, host: Host) -> None:
        self._pool = pool
        self._host = host
        self._lingering: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def attached(self, vdi: str, *, writable: bool = False, task: str = NULL) -> AsyncIterator[None]:
        """Plug a VDI for the length of the block; for reading, `linger` seconds longer. Raises Failure.

        A disk that a guest writes to cannot be read, and to write needs a disk that nobody has.
        """
        pool = self._pool
        record = pool.database.get("VDI", vdi)
        refuse_metadata(vdi, record)
        for vbd in pool.attached(vdi):
            if writable:
                raise Failure("VDI_IN_USE", vdi, "attach")
            if vbd["mode"] == "RW":
                reason = f"The VDI is not available [opterr=VDI {record['uuid']} not detached cleanly]"
                raise storage_failure(46, reason)
        if self._host not in pool.hosts_seeing(record["SR"]):
            raise storage_failure(46, "The VDI is not available [opterr=no PBD]")
        plugged = pool.control_domain_vbd(vdi, self._host, "RW" if writable else "RO", task)
        try:
            yield
        finally:
            if writable:
                pool.unplug_and_destroy(plugged)
            else:
                lingering = pool.group.create_task(self._detach(plugged))
                self._lingering.add(lingering)
                lingering.add_done_callback(self._lingering.discard)

    @asynccontextmanager
    async def for_nbd(self, uuid: str, session: str) -> AsyncIterator[Backend]:
        """Attach a disk for an NBD client, whose session is checked now and never again. Raises Failure."""
        pool = self._pool
        if not pool.sessions.alive(session):
            raise Failure("SESSION_INVALID", session)
        vdi = pool.database.by_uuid("VDI", uuid)
        async with self.attached(vdi):
            with open_disk(pool.disks, uuid) as backend:
                yield backend

    async def stop(self) -> None:
        """Detach what lingers at once."""
        for task in self._lingering:
            task.cancel()
        if self._lingering:
            await asyncio.wait(self._lingering)

    async def _detach(self, vbd: str) -> None:
        try:
            await asyncio.sleep(self._pool.options.linger)
        finally:
            self._pool.unplug_and_destroy(vbd)
