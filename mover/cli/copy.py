"""mover copy"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import msgspec

from mover.cli.opening import is_job, job_of, passphrase_of, store_at, store_of
from mover.cli.runner import say, show
from mover.copy.points import copy_points
from mover.errors import NotFoundError, PartialError, StoreMissingError, UsageError
from mover.printable import printable
from mover.report.view import open_view
from mover.storage import create_store
from mover.store import Point, Store


async def main(options: argparse.Namespace) -> int:
    """Copy restore points into another store."""
    source = store_of(options.store, options)
    points = _chosen(source, options)
    target = _target(options, source)
    if target.config.store_id == source.config.store_id:
        raise UsageError("a store cannot be copied into itself")
    with open_view(options.progress, sys.stderr) as emit:
        result = await copy_points(source, target, points, emit)
    if options.json:
        show(msgspec.json.encode(result).decode())
    else:
        for one in result.copied:
            show(f"{one.source}\t{one.target}\t{printable(one.vm)}")
    for id, reason in result.failed.items():
        say(f"the point {id} was not copied: {printable(reason)}")
    return PartialError.exit_code if result.failed else 0


def _target(options: argparse.Namespace, source: Store) -> Store:
    """The store to fill; one that is not there yet is made, as its job says or like the one that is copied."""
    passphrase = passphrase_of(options, "to_")
    try:
        return store_at(options.target, passphrase)
    except StoreMissingError:
        if is_job(options.target):
            made = create_store(job_of(options.target).store)
        else:
            made = Store.create(
                options.target,
                chunk_size=source.chunk_size,
                compression="none" if source.config.level is None else f"zstd:{source.config.level}",
                passphrase=passphrase,
            )
        say(f"made a new store at {made.location}")
        return made


def _chosen(source: Store, options: argparse.Namespace) -> list[Point]:
    points = [source.point(wanted) for wanted in options.point] if options.point else source.readable_points()[0]
    if options.vm:
        points = [point for point in points if {point.record.vm_name, point.record.vm_uuid} & set(options.vm)]
    if options.latest is not None:
        if options.latest < 1:
            raise UsageError("--latest takes a number from 1 on")
        by_vm: dict[str, list[Point]] = defaultdict(list)
        for point in points:
            by_vm[point.record.vm_uuid].append(point)
        points = [point for of_vm in by_vm.values() for point in of_vm[-options.latest :]]
    if not points:
        raise NotFoundError(f"{source.location} has no such restore points", "`mover list` shows what there is")
    return points
