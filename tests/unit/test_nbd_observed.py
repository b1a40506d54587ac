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


def test_a_fast_host_shows_its_latency_in_its_first_answers() -> None:
    observed = Observed()
    for _ in range(3):
        observed.add(256 * KiB, 2.2e-3)  # at 100 MB/s the bytes alone would take 2.6 ms
    assert observed.gap >= 128 * KiB
    observed.add(64 * KiB, 2.05e-3)
    observed.add(2048 * KiB, 4e-3)
    assert observed.gap == pytest.approx(2e-3 * 1e9, rel=0.1)  # measured from here on


def test_what_long_answers_take_is_bandwidth() -> None:
    observed = Observed()
    for _ in range(8):
        observed.add(2048 * KiB, 20e-3)
    assert observed.gap == 0
