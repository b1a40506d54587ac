"""What is concluded from how long a host's first answers took."""

from __future__ import annotations

import pytest

from protocol.nbd.plan import Observed

KiB = 1 << 10


@pytest.mark.parametrize(
    ("milliseconds", "known", "latency"),
    [
        ([], False, False),
        ([20], False, False),
        ([20, 21], True, True),
        ([20, 0.7], False, False),
        ([0.7, 0.7], False, False),
        ([0.7, 20, 0.7], True, False),
        ([20, 21, 20], True, True),
    ],
)
def test_one_slow_answer_is_no_latency(milliseconds: list[float], known: bool, latency: bool) -> None:
    observed = Observed()
    for taken in milliseconds:
        observed.add(64 * KiB, taken / 1e3)
    assert observed.known == known
    assert (observed.gap > 0) == latency
