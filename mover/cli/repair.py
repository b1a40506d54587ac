"""mover repair"""

from __future__ import annotations

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import msgspec

from mover.cli.opening import store_of
from mover.cli.runner import say, show
from mover.errors import VerifyError
from mover.events import Emit, Note
from mover.printable import printable
from mover.report.view import open_view
from mover.store import Loss, RepairReport, Store
from mover.units import format_size


async def main(options: argparse.Namespace) -> int:
    """Mend a store. 30 if something is lost, or cannot be helped."""
    store = store_of(options.store, options)
    with open_view(options.progress, sys.stderr) as emit:
        report = await repair(store, deep=options.deep, dry=options.dry_run, emit=emit)
    if options.json:
        show(msgspec.json.encode(report).decode())
    else:
        _show(report, dry=options.dry_run)
    return VerifyError.exit_code if report.losses or report.helpless else 0


def _show(report: RepairReport, *, dry: bool) -> None:
    would = "would be " if dry else ""
    show(f"{report.listed} packs {would}listed anew, {report.segments} damaged segments {would}replaced")
    show(f"{report.emptied} damaged packs {would}emptied: {report.saved} records saved, {report.dropped} dropped")
    for loss in report.losses:
        show(printable(_lost(loss)))
    for name, reason in report.helpless:
        show(printable(f"{name}: {reason}; it is left as it is"))
    if report.losses:
        say("what is lost comes back by itself where the next backup sees it again; `mover verify` tells")


def _lost(loss: Loss) -> str:
    if not loss.position:
        return f"{loss.point} of {loss.vm}: its metadata is lost; its disks can be restored with --to DIR"
    offset, length = loss.extents[0]
    more = f" and {len(loss.extents) - 1} more parts" if len(loss.extents) > 1 else ""
    first = f"{format_size(length)} at byte {offset}{more}"
    return f"{loss.point} of {loss.vm}, disk {loss.position} ({loss.disk}): lost {format_size(loss.lost)}: {first}"


class _StoppedError(Exception):
    """Nobody waits for the result any more."""


async def repair(store: Store, *, deep: bool, dry: bool, emit: Emit) -> RepairReport:
    """Repair in a worker thread. Cancelled, it stops at the next step; the next repair begins anew."""
    loop = asyncio.get_running_loop()
    stop = Event()
    last = ""

    def report(doing: str, done: int, total: int) -> None:
        nonlocal last
        if stop.is_set():
            raise _StoppedError
        if doing != last:
            last = doing
            loop.call_soon_threadsafe(emit, Note(level="info", message=f"{doing}: {total}"))

    with ThreadPoolExecutor(1, "repair") as executor:
        try:
            return await loop.run_in_executor(executor, lambda: store.repair(deep=deep, dry=dry, progress=report))
        finally:
            stop.set()
