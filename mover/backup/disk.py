"""One disk by changed blocks: decide how to read it, read it over NBD, put it in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Literal

from mover.backup.audit import UNTRUE, audit
from mover.backup.base import NO_NBD, Base, NoBase, changed_extents
from mover.backup.copy import DiskCopy, LiveDisk, Plan, new_tree
from mover.backup.session import Session
from mover.backup.unfinished import as_begun
from mover.errors import NoIncrementalError
from mover.events import Note, Retry
from mover.failure import as_mover_error
from mover.job import SelectedVm
from mover.source import Source
from mover.source.nbd import NbdSource
from mover.source.raw import RawSource
from mover.store import PartialDisk, PointDisk, Tree
from mover.units import format_size
from protocol.errors import NbdConnectError, ProtocolError, XapiError
from protocol.extent import Extent, align, intersect
from protocol.nbd import Endpoint, open_reader
from protocol.nbd import Retry as NbdRetry
from protocol.vhd import Head, parse_head
from protocol.xapi import nbd_endpoints

_HEAD_PIECE = 1 << 20
# BAT of the largest VHD (2040 GiB) plus footer and header, with room to spare.
_HEAD_LIMIT = 8 << 20


async def back_up_disk(
    session: Session,
    vm: SelectedVm,
    disk: LiveDisk,
    base: Base | NoBase,
    left: PartialDisk | None,
    *,
    full_read: str,
    keep_snapshot: bool,
) -> PointDisk:
    """Read `disk` of `vm` into the store; returns its part of the restore point.

    `left` is what a run that was killed has stored of this very snapshot.

    Raises `PoolError` and the like naming the disk, and what the store raises.
    """
    try:
        async with session.disks:
            endpoints = await nbd_places(session, disk)
            plan = await _plan(session, vm, disk, base, endpoints, full_read)
            over_nbd = plan.mode == "incremental" or (full_read == "nbd" and bool(endpoints))
            sample = vm.backup.cbt_audit if plan.mode == "incremental" else 0
            read = 0
            async with _source(session, disk, over_nbd=over_nbd) if plan.extents or sample else nullcontext() as source:
                if source is not None and sample:
                    plan, read = await _audited(session, vm.uuid, disk, plan, source, sample)
                tree = new_tree(session, disk.snapshot.size, plan)
                # A stream over HTTP cannot begin in the middle.
                if plan.mode == "full" and over_nbd:
                    session.unfinished.follow(vm.uuid, disk.vdi_uuid, disk.snapshot.uuid, disk.snapshot.size, tree)
                    if left is not None:
                        plan = await _go_on(session, vm.uuid, disk, plan, tree, left)
                copy = DiskCopy(session, vm.uuid, disk, plan, tree)
                if source is not None and plan.extents:
                    read += await source.deliver(plan.extents, session.arena, copy.intake.take)
            kept = disk.snapshot.uuid if keep_snapshot and disk.snapshot.cbt else None
            return await copy.finish(read, snapshot=kept)
    except ProtocolError as error:
        raise as_mover_error(error, f"disk {disk.position} ({disk.name}): ") or error from error


async def _audited(
    session: Session, vm: str, disk: LiveDisk, plan: Plan, source: Source, sample: int
) -> tuple[Plan, int]:
    """`plan`, or that of a full if CBT has missed something, and how many bytes it took to find out.

    Also of a job that allows incrementals only: it has asked for the audit, and no incremental would be true.
    """
    if plan.base is None:
        return plan, 0
    found = await audit(session, source, plan.base, plan.extents, disk.snapshot.size, sample)
    level: Literal["info", "warning"] = "warning" if found.missed else "info"
    session.emit(Note(level=level, vm=vm, disk=disk.position, message=f"{disk.name}: {found}"))
    if not found.missed:
        return plan, found.read
    extents = align(await _allocated(session, vm, disk), session.store.chunk_size, disk.snapshot.size)
    return Plan("full", extents, UNTRUE, last=plan.base), found.read


async def _go_on(session: Session, vm: str, disk: LiveDisk, plan: Plan, tree: Tree, left: PartialDisk) -> Plan:
    """`plan` without what `left` says is stored already, if it is: that is in `tree` then."""
    begun = as_begun(left, session.store.chunk_size)
    chunks = await session.in_thread(lambda: session.writer.put_again(tree, begun))
    done = min(chunks * session.store.chunk_size, disk.snapshot.size)
    message = f"a run that was killed had stored {format_size(done)} of {disk.name}: going on from there"
    session.emit(Note(level="info", vm=vm, disk=disk.position, message=message))
    return replace(plan, extents=intersect(plan.extents, [Extent(done, disk.snapshot.size - done)]))


async def nbd_places(session: Session, disk: LiveDisk) -> Sequence[Endpoint]:
    """Where the snapshot can be read over NBD; nowhere on pools from before there was NBD (XenServer 7.3)."""
    try:
        return await nbd_endpoints(session.pool, disk.snapshot.ref)
    except XapiError as error:
        if error.code != "MESSAGE_METHOD_UNKNOWN":
            raise
        return []


def refuse_full(vm: SelectedVm, disk: LiveDisk, why: NoBase) -> None:
    """Raise `NoIncrementalError` if the job allows incrementals only."""
    if vm.backup.mode == "incremental":
        raise NoIncrementalError(
            f"{vm.name}, disk {disk.position} ({disk.name}): the job allows incrementals only, and {why.reason}",
            'run it with --full, or set mode = "auto"',
        )


async def _plan(
    session: Session, vm: SelectedVm, disk: LiveDisk, base: Base | NoBase, endpoints: Sequence[Endpoint], full_read: str
) -> Plan:
    """How to read a disk. Raises `NoIncrementalError`: that a base is of no use turns out only here."""
    size = disk.snapshot.size
    if isinstance(base, Base) and not endpoints:
        base = NoBase(NO_NBD, base.disk)
    if isinstance(base, Base):
        changed = await changed_extents(session.pool, base, disk.snapshot, session.store.chunk_size)
        if not isinstance(changed, NoBase):
            return Plan("incremental", changed, base=base.disk, last=base.disk)
        base = changed
    refuse_full(vm, disk, base)
    whole = [Extent(0, size)] if size else []
    if full_read == "raw" or not endpoints:
        if full_read != "raw":
            session.emit(
                Note(
                    level="warning",
                    vm=vm.uuid,
                    disk=disk.position,
                    message="no network of the pool has the purpose nbd: reading over HTTP instead. To change that: "
                    "xe network-param-add param-name=purpose param-key=nbd uuid=<network-uuid>",
                )
            )
        return Plan("full", whole, base.reason, last=base.last)
    extents = align(await _allocated(session, vm.uuid, disk), session.store.chunk_size, size)
    return Plan("full", extents, base.reason, last=base.last)


async def _allocated(session: Session, vm: str, disk: LiveDisk) -> list[Extent]:
    """The allocated part of a snapshot: the head of its VHD export is a map at 2 MiB granularity."""
    try:
        async with session.transfers.export_vdi(disk.snapshot.ref, format="vhd") as stream:
            head: Head | None = None
            data = bytearray()
            while head is None and len(data) < _HEAD_LIMIT:
                piece = await stream.read(_HEAD_PIECE)
                if not piece:
                    break
                data += piece
                head = parse_head(data)
            await stream.abandon()
        if head is not None:
            return head.allocated()
        reason = "its VHD export ended within the head"
    except ProtocolError as error:
        reason = str(error)
    session.emit(
        Note(
            level="info",
            vm=vm,
            disk=disk.position,
            message=f"no map of what is allocated ({reason}): reading every byte",
        )
    )
    return [Extent(0, disk.snapshot.size)]


@asynccontextmanager
async def _source(session: Session, disk: LiveDisk, *, over_nbd: bool) -> AsyncIterator[Source]:
    if not over_nbd:
        yield RawSource(session.transfers, disk.snapshot.ref, disk.snapshot.size, session.pace)
        return

    async def locate() -> Sequence[Endpoint]:
        return await nbd_endpoints(session.pool, disk.snapshot.ref)

    def on_retry(retry: NbdRetry) -> None:
        session.emit(Retry(what=f"reading {disk.name}", server=retry.server, error=retry.reason, wait=retry.pause))

    async with open_reader(
        locate,
        connections=session.nbd_connections,
        budget=session.budget,
        observed=session.observed,
        on_retry=on_retry,
    ) as reader:
        if reader.size < disk.snapshot.size:
            raise NbdConnectError(
                "of the pool", f"serves {reader.size} bytes of {disk.name}, which has {disk.snapshot.size}"
            )
        yield NbdSource(reader, session.pace, merge_gaps=session.merge_gaps)
