"""What restore points say about how a VM changed over time. Pure functions of points."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from mover.store import MEMORY, Point, PointRecord


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One point of one VM in numbers, summed over its disks. Bytes and seconds; `time` is Unix time.

    `old_*` counts only disks that the point before had too: what a first backup reads says nothing about change.
    `seconds` is that of the disk that took longest, as disks are read side by side.
    """

    point: str
    time: float
    run: str
    size: int
    changed: int
    read: int
    zero: int
    known: int
    new: int
    stored: int
    seconds: float
    full_disks: int
    reasons: tuple[str, ...]
    old_size: int
    old_changed: int
    old_new: int
    old_stored: int

    @property
    def dedupe(self) -> float | None:
        """How many bytes were looked at for each that the store had not; None if it had all."""
        return (self.zero + self.known + self.new) / self.new if self.new else None

    @property
    def compression(self) -> float | None:
        """How many bytes went into each that was stored; None if nothing was."""
        return self.new / self.stored if self.new and self.stored else None


def sample(record: PointRecord, before: PointRecord | None, point: str = "") -> Sample:
    """The numbers of a point; `before` is the same VM's point before it."""
    # Memory is a new image every time: that it is read in full says nothing.
    disks = [disk for disk in record.disks if disk.position != MEMORY]
    known = {disk.vdi_uuid for disk in before.disks} if before is not None else set()
    old = [disk for disk in disks if disk.vdi_uuid in known]
    return Sample(
        point=point,
        time=record.created,
        run=record.run,
        size=sum(disk.size for disk in disks),
        changed=sum(disk.changed for disk in disks),
        read=sum(disk.read for disk in disks),
        zero=sum(disk.zero for disk in disks),
        known=sum(disk.known for disk in disks),
        new=sum(disk.new for disk in disks),
        stored=sum(disk.stored for disk in disks),
        seconds=max((disk.seconds for disk in disks), default=0.0),
        full_disks=sum(disk.mode == "full" for disk in disks),
        reasons=tuple(f"disk {disk.position}: {disk.reason}" for disk in disks if disk.reason),
        old_size=sum(disk.size for disk in old),
        old_changed=sum(disk.changed for disk in old),
        old_new=sum(disk.new for disk in old),
        old_stored=sum(disk.stored for disk in old),
    )


def samples(records: Iterable[tuple[str, PointRecord]]) -> list[Sample]:
    """The numbers of one VM's points (id and record), given oldest first."""
    made: list[Sample] = []
    before: PointRecord | None = None
    for id, record in records:
        made.append(sample(record, before, id))
        before = record
    return made


def by_vm(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by UUID of their VM, each list oldest first."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.place):
        found.setdefault(point.record.vm_uuid, []).append(point)
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the median distance from it scaled to a standard deviation: neither minds a few wild values."""
    middle = statistics.median(values)
    return middle, 1.4826 * statistics.median(abs(value - middle) for value in values)
