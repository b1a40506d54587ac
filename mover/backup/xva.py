"""Strategy `xva`: whole VMs as XVA streams, differences as VHD streams; nothing to set up on the hosts.

An XVA holds all disks of a VM, so a VM is read in full or as differences as a whole. Differences are taken from the
snapshot that the last full has left on the pool, or, if the job says so, from that of the last run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import msgspec

from mover.backup.base import Base, NoBase, find_base, settle
from mover.backup.copy import DiskCopy, LiveDisk, Plan
from mover.backup.disk import back_up_disk, nbd_places, refuse_full
from mover.backup.session import Session
from mover.backup.snapshot import Snapshot
from mover.events import Note
from mover.failure import as_mover_error
from mover.job import SelectedVm
from mover.source.assemble import Fill
from mover.source.vhd import open_vhd
from mover.source.xva import Target, XvaSource, open_xva
from mover.store import Point, PointDisk
from mover.units import format_size
from protocol.errors import FormatError, ProtocolError, XapiError
from protocol.extent import Extent, align
from protocol.tasks import task_group
from protocol.vhd import MAX_SIZE

_Compression = Literal["none", "gzip", "zstd"]


async def copy_vm(
    session: Session,
    vm: SelectedVm,
    taken: Snapshot,
    disks: Sequence[LiveDisk],
    points: Sequence[Point],
    *,
    keep_base: bool,
) -> tuple[list[PointDisk], bytes | None]:
    """Read the snapshot `taken` of a VM: what changed where that is possible, else all of it.

    Returns the disks and, of a full, its `ova.xml`. `points` are the VM's, oldest first. Raises `NoIncrementalError`
    where the job forbids the full that is needed, `PoolError` and the like, and what the store raises.
    """
    bases = [await _base(session, vm, disk, points) for disk in disks]
    if all(isinstance(base, Base) for base in bases):
        try:
            pairs = [(disk, base) for disk, base in zip(disks, bases, strict=True) if isinstance(base, Base)]
            return await _differences(session, vm, pairs, points, keep_base=keep_base), None
        except _RefusedError as refusal:
            bases = [_refused(disk, base, refusal) for disk, base in zip(disks, bases, strict=True)]
    for disk, base in zip(disks, bases, strict=True):
        if isinstance(base, NoBase):
            refuse_full(vm, disk, base)
    return await _full(session, vm, taken, disks, _for_all(bases), keep_base=keep_base)


async def _base(session: Session, vm: SelectedVm, disk: LiveDisk, points: Sequence[Point]) -> Base | NoBase:
    found = await find_base(session.pool, points, disk.vdi_uuid, disk.vdi, "data", session.lost)
    base = settle(found, vm.backup.mode, None)
    if isinstance(base, NoBase):
        return base
    if disk.snapshot.size < base.disk.size:
        return NoBase(f"the disk shrank from {base.disk.size} to {disk.snapshot.size} bytes", base.disk)
    obstacle = _no_vhd(disk)
    if obstacle and not await nbd_places(session, disk):
        _warn(session, vm, disk, f"{obstacle}, and no network of the pool has the purpose nbd: reading the VM in full")
        return NoBase(f"{obstacle}, so what changed cannot be exported", base.disk)
    return base


def _no_vhd(disk: LiveDisk) -> str | None:
    """Why the pool cannot export what a disk differs in."""
    if disk.snapshot.size > MAX_SIZE:
        return f"it has {format_size(disk.snapshot.size)}, and a VHD holds at most {format_size(MAX_SIZE)}"
    if disk.snapshot.image_format not in ("", "vhd"):
        return f"its SR keeps it as {disk.snapshot.image_format}, of which no VHD of differences can be made"
    return None


def _for_all(bases: Sequence[Base | NoBase]) -> list[NoBase]:
    """Why each disk is read in full: for its own reason, or another's."""
    others = next((base.reason for base in bases if isinstance(base, NoBase)), "")
    return [
        base if isinstance(base, NoBase) else NoBase(f"an XVA holds all disks, and of another one {others}", base.disk)
        for base in bases
    ]


class _RefusedError(Exception):
    """The pool does not export what a disk differs in. Nothing is lost by reading all of it."""

    def __init__(self, position: str, why: XapiError) -> None:
        super().__init__(f"the pool refused the difference: {why}")
        self.position = position


def _refused(disk: LiveDisk, base: Base | NoBase, refusal: _RefusedError) -> Base | NoBase:
    if disk.position != refusal.position or isinstance(base, NoBase):
        return base
    return NoBase(str(refusal), base.disk)


# -- what changed -----------------------------------------------------------------------------------------------------


async def _differences(
    session: Session,
    vm: SelectedVm,
    pairs: Sequence[tuple[LiveDisk, Base]],
    points: Sequence[Point],
    *,
    keep_base: bool,
) -> list[PointDisk]:
    """Read what each disk differs in from its base, several disks at once. Raises `_RefusedError`."""
    cumulative = vm.backup.increments == "since-full"

    async def one(disk: LiveDisk, base: Base) -> PointDisk:
        kept = None if cumulative or not keep_base else disk.snapshot.uuid
        old = base.disk.snapshot_uuid if cumulative and keep_base else None
        obstacle = _no_vhd(disk)
        if obstacle is not None:
            _warn(session, vm, disk, f"{obstacle}: reading it over NBD instead")
            done = await _over_nbd(session, vm, disk, points)
            return msgspec.structs.replace(done, snapshot_uuid=kept, base_snapshot=old)
        async with session.disks:
            return await _difference(session, vm, disk, base, kept, old)

    async with task_group() as group:
        reads = [group.create_task(one(disk, base)) for disk, base in pairs]
    return [read.result() for read in reads]


async def _difference(
    session: Session, vm: SelectedVm, disk: LiveDisk, base: Base, kept: str | None, old: str | None
) -> PointDisk:
    copy: DiskCopy | None = None
    try:
        async with open_vhd(
            session.transfers,
            disk.snapshot.ref,
            base.snapshot,
            session.pace,
            _content_of(session, base.disk),
        ) as source:
            if source.head.size < disk.snapshot.size:
                raise FormatError("VHD", f"a disk of {source.head.size} bytes, not {disk.snapshot.size}")
            extents = align(source.head.allocated(), session.arena.slot_size, disk.snapshot.size)
            plan = Plan("incremental", extents, base=base.disk, last=base.disk)
            copy = DiskCopy(session, vm.uuid, disk, plan)
            read = await source.deliver(extents, session.arena, copy.intake.take)
        return await copy.finish(read, snapshot=kept, base_snapshot=old)
    except XapiError as error:
        if copy is None and error.code not in _NOT_THE_BASE:
            raise _RefusedError(disk.position, error) from error
        raise as_mover_error(error, _where(disk)) or error from error
    except ProtocolError as error:
        raise as_mover_error(error, _where(disk)) or error from error


# Refusals that a full would meet just as well.
_NOT_THE_BASE = frozenset({"RBAC_PERMISSION_DENIED", "SESSION_INVALID", "HOST_OFFLINE", "HOST_CANNOT_SEE_SR"})


def _content_of(session: Session, base: PointDisk) -> Fill:
    """What the base has there; zeros where the disk has grown."""
    reader = session.store.disk(base.root, base.size)

    def fill(offset: int, view: memoryview) -> None:
        length = max(min(len(view), base.size - offset), 0)
        if length:
            reader.read_into(offset, view[:length])
        view[length:] = bytes(len(view) - length)

    return fill


async def _over_nbd(session: Session, vm: SelectedVm, disk: LiveDisk, points: Sequence[Point]) -> PointDisk:
    """As strategy `cbt` reads it: what changed if CBT is on, else all of it."""
    base = await find_base(session.pool, points, disk.vdi_uuid, disk.vdi, "log", session.lost)
    return await back_up_disk(session, vm, disk, base, None, full_read="nbd", keep_snapshot=False)


# -- all of it --------------------------------------------------------------------------------------------------------


async def _full(
    session: Session,
    vm: SelectedVm,
    taken: Snapshot,
    disks: Sequence[LiveDisk],
    reasons: Sequence[NoBase],
    *,
    keep_base: bool,
) -> tuple[list[PointDisk], bytes]:
    compression = cast(_Compression, vm.backup.compression)
    done: dict[str, PointDisk] = {}
    targets: dict[str, Target] = {}
    try:
        async with (
            session.disks,
            open_xva(session.transfers, taken.ref, compression, session.executor, session.pace) as source,
        ):
            ids = {str(vdi.snapshot.get("uuid")): vdi.id for vdi in source.ova.objects if vdi.cls == "VDI"}
            for disk, why in zip(disks, reasons, strict=True):
                if disk.snapshot.uuid not in ids:
                    raise FormatError("XVA", f"disk {disk.position} ({disk.name}) is not in its ova.xml")
                kept = disk.snapshot.uuid if keep_base else None
                targets[ids[disk.snapshot.uuid]] = _target(session, vm, disk, why, source, kept, done)
            await source.deliver(targets, session.arena)
    except ProtocolError as error:
        raise as_mover_error(error, f"{vm.name}: ") or error from error
    return [done[disk.position] for disk in disks], source.ova_xml


def _target(
    session: Session,
    vm: SelectedVm,
    disk: LiveDisk,
    why: NoBase,
    source: XvaSource,
    kept: str | None,
    done: dict[str, PointDisk],
) -> Target:
    """Where the blocks of one disk go; at its end, its part of the restore point is in `done`."""
    size = disk.snapshot.size
    copy = DiskCopy(session, vm.uuid, disk, Plan("full", [Extent(0, size)] if size else [], why.reason, last=why.last))
    before = 0

    async def begin() -> None:
        nonlocal before
        before = source.received

    async def end() -> None:
        done[disk.position] = await copy.finish(source.received - before, snapshot=kept)

    return Target(size, copy.intake.take, copy.intake.skip, begin, end)


def _where(disk: LiveDisk) -> str:
    return f"disk {disk.position} ({disk.name}): "


def _warn(session: Session, vm: SelectedVm, disk: LiveDisk, message: str) -> None:
    session.emit(Note(level="warning", vm=vm.uuid, disk=disk.position, message=f"{disk.name}: {message}"))
