"""The memory of a VM that was running: an image that the pool has written, read in full like a disk.

It is read before everything else and then removed from the pool, so that what stays is a snapshot like any other.
"""

from __future__ import annotations

from mover.backup import snapshot
from mover.backup.copy import DiskCopy, LiveDisk, Plan
from mover.backup.session import Session
from mover.backup.snapshot import Snapshot
from mover.events import Note
from mover.failure import as_mover_error
from mover.job import SelectedVm
from mover.source.raw import RawSource
from mover.store import MEMORY, PointDisk
from protocol.errors import ProtocolError
from protocol.extent import Extent


async def copy_memory(session: Session, vm: SelectedVm, taken: Snapshot) -> list[PointDisk]:
    """Read the memory that `taken` has, if it has any, over HTTP. Raises `PoolError` and the like."""
    image = taken.memory
    if image is None:
        return []
    disk = LiveDisk(MEMORY, "memory", image.ref, image.uuid, image)
    try:
        async with session.disks:
            extents = [Extent(0, image.size)]
            copy = DiskCopy(session, vm.uuid, disk, Plan("full", extents))
            source = RawSource(session.transfers, image.ref, image.size, session.pace)
            done = await copy.finish(await source.deliver(extents, session.arena, copy.intake.take))
    except ProtocolError as error:
        raise as_mover_error(error, f"{vm.name}: its memory: ") or error from error
    try:
        await snapshot.drop_memory(session.pool, taken)
    except ProtocolError as error:
        message = f"the image of the VM's memory could not be removed and will be swept: {error}"
        session.emit(Note(level="warning", vm=vm.uuid, message=message))
    return [done]
