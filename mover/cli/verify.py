"""mover verify"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import msgspec

from mover.cli.opening import job_of, store_of
from mover.cli.runner import show
from mover.errors import NotFoundError, UsageError, VerifyError
from mover.events import DamageFound, Emit, VerifyProgress
from mover.printable import printable
from mover.report.view import open_view
from mover.restore.against import Compared, all_compared, compare_with_pool
from mover.run import join_pool
from mover.store import Damage, Point, Store
from mover.units import format_size

_REPORT_EVERY = 0.2
# How many differing parts are named for people.
_SHOWN = 8


async def main(options: argparse.Namespace) -> int:
    """Check a store, or some of its points."""
    if options.against_pool is not None:
        return await _against_pool(options)
    store = store_of(options.store, options)
    points = [store.point(wanted) for wanted in options.point] or None
    routine = options.older_than is not None or options.limit is not None
    if routine:
        if points is not None:
            raise UsageError("--older-than and --limit choose the points, --point names them")
        points = store.due(options.older_than or 0.0, deep=options.deep)
    with open_view(options.progress, sys.stderr) as emit:
        damages = await verify(store, points, deep=options.deep, limit=options.limit, routine=routine, emit=emit)
    if options.json:
        show(msgspec.json.encode({"damages": damages}).decode())
    else:
        show("no damage found" if not damages else f"{len(damages)} damaged objects")
    return VerifyError.exit_code if damages else 0


async def _against_pool(options: argparse.Namespace) -> int:
    if options.point or options.deep or options.older_than is not None or options.limit is not None:
        raise UsageError("--against-pool compares one point with the pool, and checks nothing else")
    job = job_of(options.store)
    store = store_of(options.store, options)
    point = store.point(options.against_pool)
    async with join_pool(job.pool) as (pool, transfers):
        found = await compare_with_pool(store, point, pool, transfers)
    if options.json:
        show(msgspec.json.encode({"point": point.id, "disks": found}).decode())
    else:
        for disk in found:
            show(f"disk {disk.position} ({printable(disk.name)}): {_verdict(disk)}")
    if any(disk.differing for disk in found):
        return VerifyError.exit_code
    return 0 if all_compared(found) else NotFoundError.exit_code


def _verdict(disk: Compared) -> str:
    if disk.problem is not None:
        return f"cannot be compared: {disk.problem}"
    if not disk.differing:
        return f"is what the snapshot {disk.snapshot} holds"
    where = ", ".join(f"{length} bytes at {offset}" for offset, length in disk.parts[:_SHOWN])
    more = ", …" if len(disk.parts) > _SHOWN else ""
    return f"DIFFERS from the snapshot {disk.snapshot} in {format_size(disk.differing)}: {where}{more}"


class _Stopped(Exception):
    """Nobody waits for the result any more."""


async def verify(
    store: Store,
    points: list[Point] | None,
    *,
    deep: bool,
    emit: Emit,
    limit: float | None = None,
    routine: bool = False,
) -> list[Damage]:
    """Check in a worker thread; events reach the view on the event loop. Ends soon after it is cancelled."""
    loop = asyncio.get_running_loop()
    stop = Event()
    last = 0.0

    def work() -> list[Damage]:
        damages: list[Damage] = []
        for damage in store.verify(points, deep=deep, limit=limit, routine=routine, progress=report):
            damages.append(damage)
            disks = [f"{point} {position}" for point, position in damage.disks]
            found = DamageFound(object=damage.object, reason=damage.reason, points=list(damage.points), disks=disks)
            loop.call_soon_threadsafe(emit, found)
        return damages

    def report(done: int, total: int) -> None:
        nonlocal last
        if stop.is_set():
            raise _Stopped
        if done == total or time.monotonic() - last >= _REPORT_EVERY:
            last = time.monotonic()
            loop.call_soon_threadsafe(emit, VerifyProgress(done=done, total=total))

    with ThreadPoolExecutor(1, "verify") as executor:
        try:
            return await loop.run_in_executor(executor, work)
        finally:
            stop.set()
