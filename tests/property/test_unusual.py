"""Which newest point is unusual: shaped histories, and steady ones that must never alarm."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from mover.history import Sample, samples
from mover.store import PointDisk, PointRecord
from mover.unusual import ENOUGH, unusual

DAY = 86_400.0
GiB = 1 << 30
SIZE = 100 * GiB


def at(day: float, changed: float, ratio: float = 2.0, size: int = SIZE) -> Sample:
    """A point of that day: so many bytes changed, all of them new to the store, compressed by `ratio`."""
    new = int(changed)
    return Sample(
        point=f"{day}",
        time=day * DAY,
        run="",
        size=size,
        changed=new,
        read=new,
        zero=0,
        known=0,
        new=new,
        stored=int(new / ratio),
        seconds=1.0,
        full_disks=0,
        reasons=(),
        old_size=size,
        old_changed=new,
        old_new=new,
        old_stored=int(new / ratio),
    )


def steady(days: int, seed: int = 1, noise: float = 0.3) -> list[Sample]:
    """About one GiB a day that compresses two to one."""
    chance = random.Random(seed)
    return [
        at(day, GiB * math.exp(chance.gauss(0, noise)), 2.0 * math.exp(chance.gauss(0, noise / 5)))
        for day in range(days)
    ]


def test_ransomware_changes_much_and_does_not_compress():
    words = unusual(steady(20), at(20, 60 * GiB, 1.0))
    assert len(words) == 2
    assert words[0].startswith("unusual: 60 GiB changed, 60.0% of its disks; 1.1% is usual")
    assert "compress 1.0 to 1; 2.0 to 1 is usual (encrypted?)" in words[1]


def test_slow_ransomware_shows_in_compression_alone():
    (words,) = unusual(steady(20), at(20, 1.2 * GiB, 1.0))
    assert "(encrypted?)" in words


def test_runaway_logs_change_much_and_compress_well():
    words = unusual(steady(20), at(20, 30 * GiB, 12.0))
    assert len(words) == 2
    assert "compress 12.0 to 1" in words[1] and "encrypted" not in words[1]


def test_a_quiet_day_is_no_alarm():
    assert unusual(steady(20), at(20, 0)) == []
    assert unusual(steady(20), at(20, 40 << 20)) == []


def test_short_histories_are_not_judged():
    for days in range(ENOUGH):
        assert unusual(steady(days), at(days, 90 * GiB, 1.0)) == []
    assert unusual(steady(ENOUGH), at(ENOUGH, 90 * GiB, 1.0)) != []


def test_a_batch_every_weekend_is_no_news_after_the_second_time():
    days = [at(day, (20 if day % 7 == 6 else 1) * GiB) for day in range(28)]
    alarms = [day for day in range(28) if unusual(days[:day], days[day])]
    assert alarms == [6, 13]


def test_a_long_pause_explains_what_changed_meanwhile():
    assert unusual(steady(20), at(30, 11 * GiB)) == []
    assert unusual(steady(20), at(20, 11 * GiB)) != []


def test_growth_is_not_sudden():
    days = [at(day, GiB * 1.08**day) for day in range(60)]
    assert [day for day in range(60) if unusual(days[:day], days[day])] == []


def test_a_vm_that_never_writes_alarms_when_it_does():
    idle = [at(day, 0) for day in range(10)]
    assert len(unusual(idle, at(10, 5 * GiB))) == 1
    assert unusual(idle, at(10, 500 << 20)) == []


def test_one_wild_day_does_not_hide_the_next():
    days = steady(20)
    days[10] = at(10, 70 * GiB, 1.0)
    assert len(unusual(days, at(20, 70 * GiB, 1.0))) == 2


@given(st.integers(0, 10_000), st.floats(0.0, 0.35), st.integers(ENOUGH, 60))
def test_steady_vms_never_alarm(seed: int, noise: float, days: int):
    history = steady(days, seed, noise)
    chance = random.Random(seed + 1)
    usual = at(days, GiB * math.exp(max(-2, min(2, chance.gauss(0, 1))) * noise), 2.0)
    assert unusual(history, usual) == []


@given(st.integers(0, 10_000), st.floats(0.0, 0.3), st.integers(10, 60))
def test_a_disk_that_is_encrypted_always_alarms(seed: int, noise: float, days: int):
    assert unusual(steady(days, seed, noise), at(days, 80 * GiB, 1.0))


def record(day: float, *disks: tuple[str, int]) -> PointRecord:
    return PointRecord(
        vm_uuid="vm",
        vm_name="vm",
        created=day * DAY,
        disks=[
            PointDisk(position=str(n), name="d", vdi_uuid=vdi, size=SIZE, root=bytes(32), changed=changed, new=changed)
            for n, (vdi, changed) in enumerate(disks)
        ],
    )


def test_a_new_disk_says_nothing_about_change():
    """Its first backup has all of it; the other disk is judged."""
    records = [("", record(day, ("a", GiB))) for day in range(10)]
    added = [*records, ("", record(10, ("a", GiB), ("b", 90 * GiB)))]
    made = samples(added)
    assert (made[0].old_size, made[-1].old_size, made[-1].size) == (0, SIZE, 2 * SIZE)
    assert unusual(made[:-1], made[-1]) == []
    worse = samples([*records, ("", record(10, ("a", 50 * GiB), ("b", 90 * GiB)))])
    assert unusual(worse[:-1], worse[-1]) != []
