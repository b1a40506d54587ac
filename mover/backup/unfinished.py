"""Fulls that take long: noted down in the store while they go on, so that the run after one that was killed continues.

A note is used only if the snapshot that it speaks of still stands and the disk would be read in full again; what it
says is stored is looked up as if it had been read. Runs that end in order, done or failed, leave neither snapshot nor
note.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from mover.errors import MoverError
from mover.store import Begun, PartialDisk, PartialName, PartialRun, PartialVm, Store, Tree, Writer
from protocol.tasks import in_thread, task_group

# A restore point shows the VM as of its snapshot: one older than this many seconds is not what a run is started for.
MAX_AGE = 86400.0
# Seconds between notes: each ends packs and an index segment.
_SHORTEST = 0.1


@dataclass
class _Vm:
    """A VM on its way: its snapshot, and the trees of the disks that are read in full."""

    snapshot_uuid: str
    created: float
    disks: list[tuple[str, str, int, Tree]] = field(default_factory=list)


def notes_of(store: Store, job: str) -> list[tuple[PartialName, PartialRun]]:
    """The notes that runs of `job` have left, the newest first."""
    return [(name, noted) for name, noted in store.unfinished() if noted is not None and noted.job == job]


def newest_of(notes: Sequence[tuple[PartialName, PartialRun]], vm: str) -> PartialVm | None:
    """How far the newest run got with the VM of this UUID, if it is not too long ago."""
    found = next((left for _, noted in notes for left in noted.vms if left.vm_uuid == vm), None)
    return found if found and 0 <= time.time() - found.created <= MAX_AGE else None


class Unfinished:
    """What earlier runs of this job have left, and what this one would leave if it were killed now."""

    def __init__(self, store: Store, writer: Writer, job: str, run: str) -> None:
        self._writer = writer
        self._chunk_size = store.chunk_size
        self._job = job
        self._run = run
        self._vms: dict[str, _Vm] = {}
        self._settled: set[str] = set()
        self._left = notes_of(store, job)

    def of(self, vm: str) -> PartialVm | None:
        """How far the newest run that was killed got with the VM of this UUID, if it is not too long ago."""
        return newest_of(self._left, vm)

    def begin(self, vm: str, snapshot_uuid: str, created: float) -> None:
        """The VM has this snapshot now, and nobody will go on from an older one."""
        self._settled.add(vm)
        self._vms[vm] = _Vm(snapshot_uuid, created)

    def follow(self, vm: str, vdi_uuid: str, snapshot_uuid: str, size: int, tree: Tree) -> None:
        """A disk of the VM is read in full into `tree` from now on."""
        if vm in self._vms:
            self._vms[vm].disks.append((vdi_uuid, snapshot_uuid, size, tree))

    def end(self, vm: str) -> None:
        """The VM has its restore point, or its snapshot is gone: there is nothing to go on from."""
        self._settled.add(vm)
        self._vms.pop(vm, None)

    def note(self) -> None:
        """Note down how far every full is. Blocking. Raises what the store raises."""
        vms = [
            PartialVm(vm_uuid=uuid, snapshot_uuid=vm.snapshot_uuid, created=vm.created, disks=self._disks(vm))
            for uuid, vm in list(self._vms.items())
        ]
        begun = [vm for vm in vms if any(disk.done for disk in vm.disks)]
        if begun:
            self._writer.note_progress(PartialRun(job=self._job, run=self._run, vms=begun))

    def _disks(self, vm: _Vm) -> list[PartialDisk]:
        return [
            PartialDisk(
                vdi_uuid=vdi_uuid,
                snapshot_uuid=snapshot_uuid,
                size=size,
                done=min(begun.chunks * self._chunk_size, size),
                pages=begun.pages,
            )
            for vdi_uuid, snapshot_uuid, size, tree in list(vm.disks)
            for begun in [tree.begun()]
        ]

    def close(self) -> None:
        """The run has ended in order: only VMs whose snapshot could not be removed are left to go on from."""
        done = [name for name, noted in self._left if all(vm.vm_uuid in self._settled for vm in noted.vms)]
        if self._vms:
            self.note()
        self._writer.forget_progress(done, own=not self._vms)


def as_begun(left: PartialDisk, chunk_size: int) -> Begun:
    """What is left of a disk, in chunks."""
    return Begun(-(-left.done // chunk_size), left.pages)


@asynccontextmanager
async def noting_down(unfinished: Unfinished, every: float) -> AsyncIterator[None]:
    """Note down how far the run is, every so many seconds. Failing is not reported: sealing and committing tell."""

    async def beat(executor: Executor) -> None:
        while True:
            await asyncio.sleep(max(every, _SHORTEST))
            with suppress(MoverError):
                await in_thread(executor, unfinished.note)

    with ThreadPoolExecutor(1, "note") as executor:
        try:
            async with task_group() as group:
                task = group.create_task(beat(executor))
                try:
                    yield
                finally:
                    task.cancel()
        finally:
            with suppress(MoverError):
                await in_thread(executor, unfinished.close)
