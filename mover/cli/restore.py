"""mover restore"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal, cast

import msgspec

from mover.cli.opening import job_of, store_of
from mover.cli.runner import show
from mover.errors import UsageError
from mover.events import AnyEvent, Emit, Note, VmStarted
from mover.job import Job, RestoreSection
from mover.printable import printable
from mover.report.view import open_view
from mover.restore.files import Format, restore_to_files
from mover.restore.options import RestoreOptions, Via
from mover.restore.pool import restore_to_pool
from mover.restore.single import restore_as_vdis, restore_into
from mover.run import join_pool
from mover.store import Point, Store
from mover.units import format_size
from protocol.xapi import Pool, Transfers


async def main(options: argparse.Namespace) -> int:
    """Restore a point to a pool or to files."""
    if options.to is not None:
        _refuse_pool_options(options)
    elif options.format is not None:
        raise UsageError("--format is for restores to files (--to), not to a pool")
    networks = _networks(options)
    job = job_of(options.job) if options.job is not None else None
    target = _pool_options(options, networks, job)
    store = store_of(options.store, options)
    point = store.point(options.point)
    with open_view(options.progress, sys.stderr) as view:
        emit = _noticing(options, view)
        emit(VmStarted(vm=point.record.vm_uuid, name=point.record.vm_name, strategy=point.record.strategy))
        if job is None:
            files = await _to_files(store, point, Path(options.to), options.disk, options.format or "raw", emit)
            result: object = {"files": [str(file) for file in files]}
            lines = [str(file) for file in files]
        else:
            async with join_pool(job.pool) as (pool, transfers):
                result, lines = await _to_pool(store, point, pool, transfers, target, options, emit)
    show(msgspec.json.encode(result).decode() if options.json else "\n".join(lines))
    return 0


def _noticing(options: argparse.Namespace, view: Emit) -> Emit:
    """Who interrupts the restore is told whether there were warnings: they name what is left."""

    def emit(event: AnyEvent) -> None:
        options.warned = getattr(options, "warned", False) or (isinstance(event, Note) and event.level == "warning")
        view(event)

    return emit


async def _to_pool(
    store: Store,
    point: Point,
    pool: Pool,
    transfers: Transfers,
    target: RestoreOptions,
    options: argparse.Namespace,
    emit: Emit,
) -> tuple[dict[str, object], list[str]]:
    """What was made, for programs and in lines for people."""
    if options.into is not None or options.as_vdi:
        _refuse_vm_options(options)
    if options.into is not None:
        written = await restore_into(store, point, pool, transfers, target.disks, options.into, emit)
        return {"vdi": options.into, "written": written}, [f"{options.into}\t{format_size(written)} written"]
    if options.as_vdi:
        vdis = await restore_as_vdis(
            store, point, pool, transfers, target.disks, target.sr, emit, keep_partial=target.keep_partial
        )
        return {"vdis": vdis}, [f"{position}\t{uuid}" for position, uuid in vdis.items()]
    vm = await restore_to_pool(store, point, pool, transfers, target, emit)
    return {"vm": vm.uuid, "name": vm.name}, [f"{vm.uuid}\t{printable(vm.name)}"]


async def _to_files(
    store: Store, point: Point, directory: Path, disks: list[str], form: Format, emit: Emit
) -> list[Path]:
    try:
        return await restore_to_files(store, point, directory, disks=disks, form=form, emit=emit)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or directory}: {error.strerror}") from error


def _refuse_pool_options(options: argparse.Namespace) -> None:
    for name in ("sr", "name", "network", "new_macs", "via", "template", "keep_partial", "as_vdi", "into"):
        if getattr(options, name) not in (None, []):
            raise UsageError(f"--{name.replace('_', '-')} is for restores to a pool (--job), not to files")


def _refuse_vm_options(options: argparse.Namespace) -> None:
    for name in ("name", "network", "new_macs", "via", "template"):
        if getattr(options, name) not in (None, []):
            raise UsageError(f"--{name.replace('_', '-')} is for VMs, not for single disks (--as-vdi, --into)")


def _networks(options: argparse.Namespace) -> dict[str, str]:
    networks: dict[str, str] = {}
    for pair in options.network:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--network takes OLD=NEW, not {pair}")
        networks[old] = new
    return networks


def _pool_options(options: argparse.Namespace, networks: dict[str, str], job: Job | None) -> RestoreOptions:
    said = job.restore if job is not None else RestoreSection()
    via = cast(Literal["auto"] | Via, options.via or said.via)
    return RestoreOptions(
        sr=options.sr,
        name=options.name,
        disks=tuple(options.disk),
        new_macs=options.new_macs,
        via=None if via == "auto" else via,
        keep_partial=bool(options.keep_partial),
        template=said.template if options.template is None else options.template,
        networks=networks,
    )
