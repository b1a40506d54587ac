"""mover list, mover show"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

import msgspec

from mover.cli.opening import store_of
from mover.cli.runner import say, show
from mover.errors import NotFoundError, StoreDamagedError
from mover.printable import printable
from mover.store import Point
from mover.units import format_rate, format_size


async def main(options: argparse.Namespace) -> int:
    """List restore points, or show one."""
    return _list(options) if options.verb == "list" else _show(options)


def _list(options: argparse.Namespace) -> int:
    store = store_of(options.store, options)
    points, damaged = store.readable_points()
    if options.vm:
        points = [point for point in points if options.vm in (point.record.vm_uuid, point.record.vm_name)]
        # Whose a damaged point is cannot be told: it may be this VM's.
        if not points and not damaged:
            raise NotFoundError(
                f"{store.location} has no point of a VM {options.vm}",
                "`mover list` without a VM shows what there is",
            )
    if options.json:
        show(msgspec.json.encode([_fields(point) for point in points]).decode())
    else:
        for point in points:
            disks = point.record.disks
            show(
                f"{point.id}  {_time(point)}  {printable(point.record.vm_name)}  {_modes(point)}  "
                f"{format_size(sum(disk.size for disk in disks))} in {len(disks)} disks, "
                f"changed {format_size(sum(disk.changed for disk in disks))}, "
                f"stored {format_size(sum(disk.stored for disk in disks))}"
            )
    for damage in damaged:
        say(f"damaged: {damage.object}: {damage.reason}")
    return StoreDamagedError.exit_code if damaged else 0


def _show(options: argparse.Namespace) -> int:
    point = store_of(options.store, options).point(options.point)
    if options.json:
        show(msgspec.json.encode(_fields(point)).decode())
        return 0
    record = point.record
    show(f"{printable(record.vm_name)} ({record.vm_uuid})")
    show(f"point {point.id}, {_time(point)}, job {record.job}, run {record.run}, strategy {record.strategy}")
    for disk in record.disks:
        why = f" ({printable(disk.reason)})" if disk.reason else ""
        show(f"  {disk.position}  {printable(disk.name)}  {format_size(disk.size)}  VDI {disk.vdi_uuid}")
        show(
            f"     {disk.mode}{why}: changed {format_size(disk.changed)}, read {format_size(disk.read)} at "
            f"{format_rate(disk.read, disk.seconds)}, new {format_size(disk.new)}, known {format_size(disk.known)}, "
            f"zero {format_size(disk.zero)}, stored {format_size(disk.stored)}"
        )
        if disk.snapshot_uuid:
            show(f"     base of the next incremental: snapshot {disk.snapshot_uuid}")
    return 0


def _fields(point: Point) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(point.record, builtin_types=(bytes,))
    fields["metadata"] = point.record.metadata.hex()
    for disk in fields["disks"]:
        disk["root"] = disk["root"].hex()
    return {"id": point.id} | fields


def _time(point: Point) -> str:
    return datetime.fromtimestamp(point.record.created, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S%z")


def _modes(point: Point) -> str:
    return "+".join(sorted({disk.mode for disk in point.record.disks})) or "no disks"
