"""Which restore points a retention policy keeps. A pure function of the points' times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

from mover.job.model import RetentionSection
from mover.store import Point


@dataclass(frozen=True)
class Verdict:
    """A point, and the rules that keep it; none: it can go."""

    point: Point
    rules: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether any rule keeps it."""
        return bool(self.rules)


def judge(points: Iterable[Point], policy: RetentionSection, lost: frozenset[bytes] = frozenset()) -> list[Verdict]:
    """Say for each point which rules keep it, oldest first.

    Each VM is judged by itself. The newest point of a VM is always kept, and so are the newest one of which the store
    has lost nothing (`lost` are the roots of disks of which it has), and the one whose snapshots the next incremental
    starts from; a policy without any rule keeps everything. Periods are those of UTC, and the newest point of a period
    stands for it.
    """
    by_vm: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.place):
        by_vm.setdefault(point.record.vm_uuid, []).append(point)
    verdicts = [verdict for own in by_vm.values() for verdict in _judge_vm(own, policy, lost)]
    return sorted(verdicts, key=lambda verdict: verdict.point.place)


def has_policy(policy: RetentionSection) -> bool:
    """Whether a job says anything about retention."""
    return any(astuple(policy))


def to_forget(
    points: Iterable[Point], job: str, policy: RetentionSection, lost: frozenset[bytes] = frozenset()
) -> list[Point]:
    """The points of the job of this name that its policy does not keep. Those of other jobs are not its business."""
    own = [point for point in points if point.record.job == job]
    return [verdict.point for verdict in judge(own, policy, lost) if not verdict.kept]


def _judge_vm(points: list[Point], policy: RetentionSection, lost: frozenset[bytes]) -> list[Verdict]:
    rules: dict[str, list[str]] = {point.id: [] for point in points}
    rules[points[-1].id].append("newest")
    whole = [point for point in points if lost.isdisjoint(disk.root for disk in point.record.disks)]
    if whole and whole[-1] is not points[-1]:
        rules[whole[-1].id].append("newest that is whole")
    for point in _bases(points):
        rules[point.id].append("base of the next incremental")
    limits = [(name, getattr(policy, f"keep_{name}"), period) for name, period in _PERIODS]
    if not policy.keep_last and not any(limit for _, limit, _ in limits):
        for point in points:
            rules[point.id].append("no policy")
    for point in points[len(points) - min(policy.keep_last, len(points)) :]:
        rules[point.id].append("last")
    for name, limit, period in limits:
        seen: set[object] = set()
        for point in reversed(points):
            key = period(datetime.fromtimestamp(point.record.created, UTC))
            if key not in seen and len(seen) < limit:
                seen.add(key)
                rules[point.id].append(name)
    return [Verdict(point, tuple(rules[point.id])) for point in points]


def _bases(points: list[Point]) -> list[Point]:
    """Whose snapshots the next incremental starts from: what the disks of the newest point name, each by itself.

    If that one names none, the newest point that has any: a run without bases must not cost those of the others.
    """
    named = {disk.snapshot_uuid or disk.base_snapshot for disk in points[-1].record.disks} - {None}
    if not named:
        return [p for p in reversed(points) if any(disk.snapshot_uuid for disk in p.record.disks)][:1]
    return [p for p in points if any(disk.snapshot_uuid in named for disk in p.record.disks)]


_PERIODS: tuple[tuple[str, Callable[[datetime], object]], ...] = (
    ("hourly", lambda time: (time.date(), time.hour)),
    ("daily", lambda time: time.date()),
    ("weekly", lambda time: time.isocalendar()[:2]),
    ("monthly", lambda time: (time.year, time.month)),
    ("yearly", lambda time: time.year),
)
