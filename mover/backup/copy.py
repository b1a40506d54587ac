"""The copy of one disk into the store: what is planned, the blocks, and what the restore point says about it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mover.backup.session import Session
from mover.backup.snapshot import SnapshotDisk
from mover.events import DiskFinished, DiskPlanned, DiskProgress
from mover.pipeline.intake import Counts, Intake
from mover.store import PointDisk, Tree
from protocol.extent import Extent, total


@dataclass(frozen=True)
class LiveDisk:
    """A disk as the VM has it: its live VDI, its position, and its snapshot of this run."""

    position: str
    name: str
    vdi: str
    vdi_uuid: str
    snapshot: SnapshotDisk


@dataclass(frozen=True)
class Plan:
    """How a disk is read. `base` is the state that unread parts are taken from, `last` what to compare with."""

    mode: Literal["full", "incremental"]
    extents: Sequence[Extent]
    reason: str | None = None
    base: PointDisk | None = None
    last: PointDisk | None = None


def new_tree(session: Session, size: int, plan: Plan) -> Tree:
    """The tree of a disk of `size` bytes that is read as planned."""
    return session.writer.tree(
        size,
        base=plan.base.root if plan.base else None,
        base_size=plan.base.size if plan.base else 0,
        compare=plan.last.root if plan.last else None,
        compare_size=plan.last.size if plan.last else 0,
    )


class DiskCopy:
    """One disk of the VM with UUID `vm` on its way: says the plan at once; give `intake` what is planned; `finish`.

    `tree` is for one that holds something already; a new one is begun otherwise.
    """

    def __init__(self, session: Session, vm: str, disk: LiveDisk, plan: Plan, tree: Tree | None = None) -> None:
        self._session = session
        self._vm = vm
        self._disk = disk
        self._plan = plan
        self._started = time.monotonic()
        size = disk.snapshot.size
        self._tree = tree or new_tree(session, size, plan)
        self.intake = Intake(
            session.writer,
            self._tree,
            plan.extents,
            size,
            session.store.chunk_size,
            session.executor,
            self._report,
        )
        session.emit(
            DiskPlanned(
                vm=vm,
                disk=disk.position,
                name=disk.name,
                size=size,
                mode=plan.mode,
                to_read=total(plan.extents),
                reason=plan.reason,
            )
        )

    async def finish(self, read: int, *, snapshot: str | None = None, base_snapshot: str | None = None) -> PointDisk:
        """Write the rest of the tree. `read` is what crossed the wire, in bytes; the UUIDs are what stays as a base."""
        root = await self._session.in_thread(self.intake.finish)
        counts, disk, plan = self.intake.counts, self._disk, self._plan
        self._report(counts)
        seconds = time.monotonic() - self._started
        self._session.emit(
            DiskFinished(
                vm=self._vm,
                disk=disk.position,
                name=disk.name,
                mode=plan.mode,
                size=disk.snapshot.size,
                changed=self._tree.changed,
                read=read,
                zero=counts.zero,
                known=counts.known,
                new=counts.new,
                stored=counts.stored,
                seconds=seconds,
            )
        )
        return PointDisk(
            position=disk.position,
            name=disk.name,
            vdi_uuid=disk.vdi_uuid,
            size=disk.snapshot.size,
            root=root,
            mode=plan.mode,
            reason=plan.reason,
            snapshot_uuid=snapshot,
            base_snapshot=base_snapshot,
            changed=self._tree.changed,
            read=read,
            zero=counts.zero,
            known=counts.known,
            new=counts.new,
            stored=counts.stored,
            seconds=seconds,
        )

    def _report(self, counts: Counts) -> None:
        self._session.emit(
            DiskProgress(
                vm=self._vm,
                disk=self._disk.position,
                done=counts.done,
                read=counts.done,
                zero=counts.zero,
                known=counts.known,
                new=counts.new,
                stored=counts.stored,
            )
        )
