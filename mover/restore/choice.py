"""Which disks of a point are meant."""

from __future__ import annotations

from collections.abc import Sequence

from mover.errors import NotFoundError
from mover.store import Point, PointDisk


def choose_disks(point: Point, wanted: Sequence[str]) -> list[PointDisk]:
    """The disks of `point` whose position, name or VDI UUID is in `wanted` (empty: all), by position."""
    by_position = sorted(point.record.disks, key=lambda disk: (len(disk.position), disk.position))
    if not wanted:
        return by_position
    for name in wanted:
        if not any(name in (disk.position, disk.name, disk.vdi_uuid) for disk in by_position):
            has = ", ".join(f"{disk.position} ({disk.name})" for disk in by_position)
            raise NotFoundError(f"{point.record.vm_name} has no disk {name} in point {point.id}", f"it has {has}")
    return [disk for disk in by_position if {disk.position, disk.name, disk.vdi_uuid} & set(wanted)]
