"""One disk of one VM: decide how to read it, read it, put it in the store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from mover.backup.base import NO_NBD, Base, NoBase, changed_extents
from mover.backup.session import Session
from mover.backup.snapshot import SnapshotDisk
from mover.events import DiskFinished, DiskPlanned, DiskProgress, Note, Retry
from mover.failure import as_mover_error
from mover.pipeline.intake import Counts, Intake
from mover.source import Source
from mover.source.nbd import NbdSource
from mover.source.raw import RawSource
from mover.store import PointDisk
from protocol.errors import NbdConnectError, ProtocolError, XapiError
from protocol.extent import Extent, align, total
from protocol.nbd import Endpoint, open_reader
from protocol.nbd import Retry as NbdRetry
from protocol.vhd import Head, parse_head
from protocol.xapi import nbd_endpoints

_HEAD_PIECE = 1 << 20
# BAT of the largest VHD (2040 GiB) plus footer and header, with room to spare.
_HEAD_LIMIT = 8 << 20


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
    extents: list[Extent]
    over_nbd: bool
    reason: str | None = None
    base: PointDisk | None = None
    last: PointDisk | None = None


async def back_up_disk(
    session: Session, vm: str, disk: LiveDisk, base: Base | NoBase, *, full_read: str, keep_snapshot: bool
) -> PointDisk:
    """Read `disk` of the VM with UUID `vm` into the store; returns its part of the restore point.

    Raises `PoolError` and the like naming the disk, and what the store raises.
    """
    try:
        return await _back_up(session, vm, disk, base, full_read, keep_snapshot=keep_snapshot)
    except ProtocolError as error:
        raise as_mover_error(error, f"disk {disk.position} ({disk.name}): ") or error from error


async def _back_up(
    session: Session, vm: str, disk: LiveDisk, base: Base | NoBase, full_read: str, *, keep_snapshot: bool
) -> PointDisk:
    async with session.disks:
        endpoints = await _endpoints(session, disk)
        plan = await _plan(session, vm, disk, base, endpoints, full_read)
        session.emit(
            DiskPlanned(
                vm=vm,
                disk=disk.position,
                name=disk.name,
                size=disk.snapshot.size,
                mode=plan.mode,
                to_read=total(plan.extents),
                reason=plan.reason,
            )
        )
        return await _read(session, vm, disk, plan, keep_snapshot=keep_snapshot)


async def _endpoints(session: Session, disk: LiveDisk) -> Sequence[Endpoint]:
    """Where the snapshot can be read over NBD; nowhere on pools from before there was NBD (XenServer 7.3)."""
    try:
        return await nbd_endpoints(session.pool, disk.snapshot.ref)
    except XapiError as error:
        if error.code != "MESSAGE_METHOD_UNKNOWN":
            raise
        return []


async def _plan(
    session: Session, vm: str, disk: LiveDisk, base: Base | NoBase, endpoints: Sequence[Endpoint], full_read: str
) -> Plan:
    size = disk.snapshot.size
    if isinstance(base, Base) and not endpoints:
        base = NoBase(NO_NBD, base.disk)
    if isinstance(base, Base):
        changed = await changed_extents(session.pool, base, disk.snapshot)
        if not isinstance(changed, NoBase):
            extents = align(changed, session.store.chunk_size, size)
            return Plan("incremental", extents, True, base=base.disk, last=base.disk)
        base = changed
    whole = [Extent(0, size)] if size else []
    if full_read == "raw" or not endpoints:
        if full_read != "raw":
            session.emit(
                Note(
                    level="warning",
                    vm=vm,
                    disk=disk.position,
                    message="no network of the pool has the purpose nbd: reading over HTTP instead. To change that: "
                    "xe network-param-add param-name=purpose param-key=nbd uuid=<network-uuid>",
                )
            )
        return Plan("full", whole, False, base.reason, last=base.last)
    extents = align(await _allocated(session, vm, disk), session.store.chunk_size, size)
    return Plan("full", extents, True, base.reason, last=base.last)


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


async def _read(session: Session, vm: str, disk: LiveDisk, plan: Plan, *, keep_snapshot: bool) -> PointDisk:
    started = time.monotonic()
    size = disk.snapshot.size
    tree = session.writer.tree(
        size,
        base=plan.base.root if plan.base else None,
        base_size=plan.base.size if plan.base else 0,
        compare=plan.last.root if plan.last else None,
        compare_size=plan.last.size if plan.last else 0,
    )

    def progress(counts: Counts) -> None:
        session.emit(
            DiskProgress(
                vm=vm,
                disk=disk.position,
                done=counts.done,
                read=counts.done,
                zero=counts.zero,
                known=counts.known,
                new=counts.new,
                stored=counts.stored,
            )
        )

    intake = Intake(session.writer, tree, plan.extents, size, session.store.chunk_size, session.executor, progress)
    read = 0
    if plan.extents:
        async with _source(session, disk, plan) as source:
            read = await source.deliver(plan.extents, session.arena, intake.take)
    root = await session.in_thread(intake.finish)
    counts = intake.counts
    progress(counts)
    seconds = time.monotonic() - started
    session.emit(
        DiskFinished(
            vm=vm,
            disk=disk.position,
            name=disk.name,
            mode=plan.mode,
            size=size,
            changed=tree.changed,
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
        size=size,
        root=root,
        mode=plan.mode,
        reason=plan.reason,
        snapshot_uuid=disk.snapshot.uuid if keep_snapshot and disk.snapshot.cbt else None,
        changed=tree.changed,
        read=read,
        zero=counts.zero,
        known=counts.known,
        new=counts.new,
        stored=counts.stored,
        seconds=seconds,
    )


@asynccontextmanager
async def _source(session: Session, disk: LiveDisk, plan: Plan) -> AsyncIterator[Source]:
    if not plan.over_nbd:
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
