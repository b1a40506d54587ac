"""What a retention policy must never let go, and what it must."""

import dataclasses
from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mover.job.model import RetentionSection
from mover.retention import judge
from mover.store import Point, PointDisk, PointRecord
from mover.store.names import PointName

HOUR = 3600.0
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def point(number: int, hours: float, vm: str = "vm", snapshot: str | None = None) -> Point:
    disk = PointDisk(position="0", name="d", vdi_uuid="v", size=1, root=bytes(32), snapshot_uuid=snapshot)
    record = PointRecord(vm_uuid=vm, vm_name=vm, created=START + hours * HOUR, disks=[disk])
    return Point(f"{number:016x}", PointName(f"{number:032x}", 0), record)


counts = st.integers(0, 5)
policies = st.builds(
    RetentionSection,
    keep_last=counts,
    keep_hourly=counts,
    keep_daily=counts,
    keep_weekly=counts,
    keep_monthly=counts,
    keep_yearly=counts,
)
histories = st.lists(
    st.tuples(st.integers(0, 20_000), st.sampled_from("ab"), st.booleans()), min_size=1, max_size=40
).map(lambda items: [point(n, hours, vm, "s" if base else None) for n, (hours, vm, base) in enumerate(items)])


@given(histories, policies)
def test_every_vm_keeps_its_newest_point_and_the_base_of_its_next_incremental(points, policy):
    kept = [verdict.point for verdict in judge(points, policy) if verdict.kept]
    for vm in {point.record.vm_uuid for point in points}:
        own = sorted((p for p in points if p.record.vm_uuid == vm), key=lambda p: (p.record.created, p.name))
        assert own[-1] in kept
        based = [p for p in own if p.record.disks[0].snapshot_uuid]
        assert not based or based[-1] in kept


@given(histories, policies)
def test_no_rule_keeps_more_than_its_number(points, policy):
    verdicts = judge(points, policy)
    assert len(verdicts) == len(points)
    for vm in "ab":
        own = [verdict for verdict in verdicts if verdict.point.record.vm_uuid == vm]
        for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
            assert sum(rule in verdict.rules for verdict in own) <= getattr(policy, f"keep_{rule}")


@given(histories)
def test_without_a_policy_everything_stays(points):
    assert all(verdict.kept for verdict in judge(points, RetentionSection()))


@given(histories, policies, st.integers(1, 3))
def test_what_was_let_go_does_not_change_what_is_kept(points, policy, times):
    kept = [verdict.point for verdict in judge(points, policy) if verdict.kept]
    for _ in range(times):
        again = [verdict.point for verdict in judge(kept, policy) if verdict.kept]
        assert set(map(id, again)) <= set(map(id, kept))
        assert len(again) == len(kept)


def test_a_year_of_daily_points():
    points = [point(day, 24.0 * day + 1) for day in range(365)]
    policy = RetentionSection(keep_last=3, keep_daily=14, keep_weekly=8, keep_monthly=12)
    kept = [verdict for verdict in judge(points, policy) if verdict.kept]
    assert sum("monthly" in verdict.rules for verdict in kept) == 12
    assert [verdict.point.id for verdict in kept if "last" in verdict.rules] == [p.id for p in points[-3:]]
    assert 24 <= len(kept) <= 14 + 8 + 12


def several(number: int, hours: float, disks: list[tuple[str, str | None, str | None]]) -> Point:
    """A point of several disks: VDI, the snapshot taken of it, the older one that it still hangs on."""
    made = [
        PointDisk(
            position=str(at), name="d", vdi_uuid=vdi, size=1, root=bytes(32), snapshot_uuid=taken, base_snapshot=old
        )
        for at, (vdi, taken, old) in enumerate(disks)
    ]
    record = PointRecord(vm_uuid="vm", vm_name="vm", created=START + hours * HOUR, disks=made)
    return Point(f"{number:016x}", PointName(f"{number:032x}", 0), record)


runs = st.lists(
    st.tuples(st.sampled_from(["full", "since-full", "none"]), st.integers(1, 900)), min_size=1, max_size=30
)


@given(st.lists(runs, min_size=1, max_size=3), policies)
def test_each_disk_of_the_newest_point_keeps_the_point_that_its_next_incremental_starts_from(disks, policy):
    """Each disk has a life of its own: fulls that leave a snapshot, cumulative runs that hang on it, runs without."""
    length = min(len(life) for life in disks)
    standing: dict[int, str | None] = {}
    points, hours = [], 0.0
    for number in range(length):
        hours += disks[0][number][1]
        states = []
        for at, life in enumerate(disks):
            kind = life[number][0]
            standing[at] = {"full": f"s{number}-{at}", "since-full": standing.get(at), "none": None}[kind]
            taken = standing[at] if kind == "full" else None
            states.append((f"v{at}", taken, standing[at] if kind == "since-full" else None))
        points.append(several(number, hours, states))
    kept = [verdict.point for verdict in judge(points, policy) if verdict.kept]
    assert points[-1] in kept
    for at, snapshot in standing.items():
        holders = [p for p in points if p.record.disks[at].snapshot_uuid == snapshot]
        assert snapshot is None or holders[-1] in kept


@given(histories, policies)
def test_judging_again_what_is_left_lets_nothing_more_go_that_is_needed(points, policy):
    """A policy is applied after every run: what one time keeps as newest or base, the next time keeps too."""
    kept = [verdict.point for verdict in judge(points, policy) if verdict.kept]
    again = [verdict.point for verdict in judge(kept, policy) if verdict.kept]
    assert again == kept


@given(histories, policies, st.sets(st.integers(0, 39)))
def test_the_newest_point_that_is_whole_is_kept(points, policy, damaged):
    """A newer one of which the store has lost something is no reason to let go of the last good one."""
    own = [dataclasses.replace(p, record=with_root(p.record, bytes([n + 1]) * 32)) for n, p in enumerate(points)]
    lost = frozenset(bytes([n + 1]) * 32 for n in damaged)
    kept = [verdict.point for verdict in judge(own, policy, lost) if verdict.kept]
    for vm in {point.record.vm_uuid for point in own}:
        whole = [p for p in own if p.record.vm_uuid == vm and p.record.disks[0].root not in lost]
        assert not whole or max(whole, key=lambda p: p.place) in kept


def with_root(record: PointRecord, root: bytes) -> PointRecord:
    disks = [msgspec.structs.replace(disk, root=root) for disk in record.disks]
    return msgspec.structs.replace(record, disks=disks)


def test_a_point_that_says_it_is_older_than_the_one_before_is_the_newest_all_the_same():
    before, after = point(1, 5), point(2, 2)
    after = dataclasses.replace(after, record=msgspec.structs.replace(after.record, order=before.place[0] + 0.001))
    verdicts = judge([after, before], RetentionSection(keep_last=1))
    assert [(one.point.id, one.kept) for one in verdicts] == [(before.id, False), (after.id, True)]
