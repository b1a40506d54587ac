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
        ([0.7, 20, 0.7], True, False),
        ([20, 21, 20], True, True),
        ([2, 2], False, False),
        ([2, 2, 2], True, True),
        ([2, 2, 0.7], True, False),
    ],
)
def test_latency_is_what_several_answers_took(milliseconds: list[float], known: bool, latency: bool) -> None:
    observed = Observed()
    for taken in milliseconds:
        observed.add(64 * KiB, taken / 1e3)
    assert observed.known == known
    assert (observed.gap > 0) == latency
