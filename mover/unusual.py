"""Is a VM's newest point unlike those before it? Ransomware and runaway logs show in how much changed, and how it
compresses. A pure function of the numbers of points.

What is compared are logarithms: a VM that writes ten times as much as ever is as far off as one that writes a tenth.
A value is unusual if it lies outside of what the history spreads over (median and median absolute deviation, which a
few wild values do not move), is off by a factor that matters, and has not come twice before: a batch that runs every
weekend is no news. What would be right by chance often is left alone: short histories and small amounts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mover.history import Sample, spread
from mover.units import MiB, format_size

# So many points of a VM have to be there before one is judged, and so many of the last ones are looked at.
ENOUGH = 6
_HISTORY = 40
# How many deviations off, and by which factor at least.
_DEVIATIONS = 5.0
_CHANGE_FACTOR = 4.0
_COMPRESSION_FACTOR = 1.5
# What is below is noise: of a VM's size, and in bytes that were new to the store.
_SHARE = 0.01
_NEW = 16 * MiB
# A change below this counts as this: nothing at all and next to nothing are the same.
_LEAST_SHARE = 0.0005


def unusual(history: Sequence[Sample], newest: Sample) -> list[str]:
    """What is unusual about `newest`, in words; nothing as a rule. `history` holds the points before, oldest first."""
    before = [sample for sample in history[-_HISTORY:] if sample.old_size]
    if not newest.old_size or len(before) < ENOUGH:
        return []
    return [words for words in (_change(before, newest), _compression(before, newest)) if words]


def _change(before: Sequence[Sample], newest: Sample) -> str | None:
    pauses = [later.time - earlier.time for earlier, later in pairwise(before)]
    usual_pause = spread(pauses)[0]
    # After a long pause more has changed: that is expected up to as many times more as the pause is longer.
    longer = max(1.0, (newest.time - before[-1].time) / usual_pause) if usual_pause > 0 else 1.0
    share = newest.old_changed / newest.old_size
    value = _log(share / longer)
    values = [_log(sample.old_changed / sample.old_size) for sample in before]
    middle, deviation = spread(values)
    if share < _SHARE or value - middle < max(_DEVIATIONS * deviation, math.log(_CHANGE_FACTOR)):
        return None
    if _came_before(value, values):
        return None
    return (
        f"unusual: {format_size(newest.old_changed)} changed, {share:.1%} of its disks; {math.exp(middle):.1%} is usual"
    )


def _compression(before: Sequence[Sample], newest: Sample) -> str | None:
    ratio = _ratio(newest)
    values = [math.log(known) for sample in before if (known := _ratio(sample)) is not None]
    if ratio is None or len(values) < ENOUGH:
        return None
    value = math.log(ratio)
    middle, deviation = spread(values)
    if abs(value - middle) < max(_DEVIATIONS * deviation, math.log(_COMPRESSION_FACTOR)):
        return None
    sign = 1 if value > middle else -1
    if _came_before(sign * value, [sign * other for other in values]):
        return None
    return (
        f"unusual: {format_size(newest.old_new)} of new content compress {ratio:.1f} to 1; "
        f"{math.exp(middle):.1f} to 1 is usual" + (" (encrypted?)" if sign < 0 else "")
    )


def _ratio(sample: Sample) -> float | None:
    return sample.old_new / sample.old_stored if sample.old_new >= _NEW and sample.old_stored else None


def _came_before(value: float, values: Sequence[float]) -> bool:
    """Whether two of the earlier values were about as high."""
    return sum(other > value - math.log(_COMPRESSION_FACTOR) for other in values) >= 2


def _log(share: float) -> float:
    return math.log(max(share, _LEAST_SHARE))
