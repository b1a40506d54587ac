"""However many small parts of a disk have changed, what an incremental knows of them takes little memory."""

import subprocess
import sys
from pathlib import Path

from mover.backup.audit import pick
from mover.pipeline.low_water import LowWater
from protocol.cbt import GRANULE, changed_extents
from protocol.extent import gaps, total
from protocol.nbd.plan import Observed, Planner

KiB, MiB = 1 << 10, 1 << 20
RUNS, APART = 1_500_000, 10  # a tenth of a disk of nearly a tebibyte
TEN_APART = bytes([0x80, 0x20, 0x08, 0x02, 0x00])


def peak() -> int:
    """The most that this process has had in memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * KiB


def plan() -> int:
    """What it takes (bytes) to go from the bitmap to requests and to an audit."""
    bitmap = TEN_APART * (RUNS // 4)
    size = RUNS * APART * GRANULE
    before = peak()
    assert len(changed_extents(bitmap, size, size, 4 * GRANULE)) == RUNS
    changed = changed_extents(bitmap, size, size)
    assert len(changed) == RUNS
    assert total(changed) == RUNS * GRANULE
    low_water, planner = LowWater(changed, size), Planner(changed, size, merge=False)
    for number in range(20_000):
        (request,) = planner.next(Observed())
        assert request.offset == number * APART * GRANULE
        low_water.delivered(request.wanted[0])
    assert low_water.mark == changed[20_000].offset
    assert len(pick(lambda: gaps(changed, size), GRANULE, 100)) == 100
    return peak() - before


def test_many_runs_take_little_memory_from_the_bitmap_to_the_plan() -> None:
    """In a process of its own, whose memory nothing else has taken."""
    command = [sys.executable, "-c", "from tests.unit.test_cbt_memory import plan; print(plan())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 * MiB
