"""mover prune"""

from __future__ import annotations

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import msgspec

from mover.cli.opening import is_job, job_of, store_of
from mover.cli.runner import say, show
from mover.events import Emit, Note
from mover.report.view import open_view
from mover.retention import has_policy, to_forget
from mover.store import Patience, Point, PruneReport, Store
from mover.units import format_size


async def main(options: argparse.Namespace) -> int:
    """Apply a job's retention, and give back the space of what no restore point needs."""
    store = store_of(options.store, options)
    going = _going(store, options.store)
    with open_view(options.progress, sys.stderr) as emit:
        forgotten = going if options.dry_run else store.forget(going)
        report = await prune(store, going if options.dry_run else None, Patience(settle=options.settle), emit=emit)
    if options.json:
        ids = [point.id for point in forgotten]
        show(msgspec.json.encode({"dry_run": options.dry_run, "forgotten": ids} | msgspec.to_builtins(report)).decode())
    else:
        _show(forgotten, report, dry_run=options.dry_run)
    return 0


def _going(store: Store, argument: str) -> list[Point]:
    if not is_job(argument):
        return []
    job = job_of(argument)
    if not has_policy(job.retention):
        return []
    return to_forget(store.points(), job.name, job.retention, store.lost_roots())


def _show(forgotten: list[Point], report: PruneReport, *, dry_run: bool) -> None:
    would = "would " if dry_run else ""
    for point in forgotten:
        show(f"{would}forget {point.id} of {point.record.vm_name}")
    show(
        f"{would}delete {report.deleted} of {report.packs} packs, {format_size(report.freed)}, "
        f"and {would}copy {format_size(report.copied)} out of {report.repacked} of them"
    )
    if report.fenced:
        say(f"{report.fenced} backups were silent for too long and are shut out; they can be run again")
    for damaged in report.damaged:
        say(f"left alone: {damaged}")


class _Stopped(Exception):
    """Nobody waits for the result any more."""


async def prune(store: Store, without: list[Point] | None, patience: Patience, *, emit: Emit) -> PruneReport:
    """Prune, or if `without` is a list say what a prune would do if these points were forgotten.

    It runs in a worker thread. Cancelled, it stops at the next step; what is left, the next prune finishes.
    """
    loop = asyncio.get_running_loop()
    stop = Event()
    last = ""

    def report(doing: str, done: int, total: int) -> None:
        nonlocal last
        if stop.is_set():
            raise _Stopped
        if doing != last and done < total:
            last = doing
            loop.call_soon_threadsafe(emit, Note(level="info", message=f"{doing}: {total}"))

    def work() -> PruneReport:
        if without is None:
            return store.prune(patience=patience, progress=report)
        return store.would_prune(without, progress=report)

    with ThreadPoolExecutor(1, "prune") as executor:
        try:
            return await loop.run_in_executor(executor, work)
        finally:
            stop.set()
