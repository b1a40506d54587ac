"""The read plan: every wanted byte in exactly one request, whatever is merged, cut and given back."""

from __future__ import annotations

from itertools import pairwise, zip_longest
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.extent import Extent, merge, total
from protocol.nbd.plan import TOGETHER, Observed, Planner, Request

KiB = 1 << 10
MiB = 1 << 20
LIMIT = 256 * KiB


def seen(latency: float, bandwidth: float) -> Observed:
    observed = Observed()
    for length in (64 * KiB, 2 * MiB) * 4:
        observed.add(length, latency + length / bandwidth)
    return observed


def extents_of(unit: int, count: int) -> st.SearchStrategy[list[Extent]]:
    span = st.tuples(st.integers(0, count), st.integers(1, 12))
    return st.lists(span, max_size=25).map(lambda spans: merge(Extent(a * unit, n * unit) for a, n in spans))


def drain(planner: Planner, observed: Observed, random: Random | None = None) -> list[Request]:
    """Pull everything; with `random`, several at a time, and some requests fail and are given back first."""
    done: list[Request] = []
    while requests := planner.next(observed, 1 if random is None else random.randrange(40)):
        for request in requests:
            if random is not None and random.random() < 0.3:
                planner.give_back(request)
            else:
                done.append(request)
    assert planner.exhausted
    return done


latencies = st.sampled_from([0.0, 0.0001, 0.002, 0.010, 0.020])
bandwidths = st.sampled_from([1e6, 20e6, 100e6, 2e9])
units = st.sampled_from([1, 100, 512, 4 * KiB, 64 * KiB])


@given(units.flatmap(lambda unit: extents_of(unit, 400)), latencies, bandwidths, st.booleans(), st.randoms())
def test_every_wanted_byte_is_delivered_once(
    extents: list[Extent], latency: float, bandwidth: float, merging: bool, random: Random
) -> None:
    size = 500 * 64 * KiB
    requests = drain(Planner(extents, size, limit=LIMIT, merge=merging), seen(latency, bandwidth), random)
    wanted = sorted(extent for request in requests for extent in request.wanted)
    assert all(left.end <= right.offset for left, right in pairwise(wanted))
    assert merge(wanted) == extents
    for request in requests:
        assert 0 < request.length <= LIMIT
        assert request.offset % 512 == 0 and request.length % 512 == 0
        assert request.offset + request.length <= size
        assert list(request.wanted) == sorted(request.wanted)
        assert request.wanted[0].offset >= request.offset
        assert request.wanted[-1].end <= request.offset + request.length


@given(extents_of(64 * KiB, 400), latencies, bandwidths)
def test_without_merging_the_bytes_read_are_the_dirty_bytes(
    extents: list[Extent], latency: float, bandwidth: float
) -> None:
    requests = drain(Planner(extents, 500 * 64 * KiB, limit=LIMIT, merge=False), seen(latency, bandwidth))
    assert sum(request.length for request in requests) == total(extents)


@given(extents_of(64 * KiB, 400), latencies, bandwidths, st.integers(0, 40))
def test_short_requests_are_taken_together_only_from_those_who_answer_at_once(
    extents: list[Extent], latency: float, bandwidth: float, share: int
) -> None:
    planner, observed = Planner(extents, 500 * 64 * KiB, limit=LIMIT), seen(latency, bandwidth)
    alone = drain(Planner(extents, 500 * 64 * KiB, limit=LIMIT), observed)
    taken = list(iter(lambda: planner.next(observed, share), ()))
    assert [request for together in taken for request in together] == alone
    for together, following in zip_longest(taken, taken[1:], fillvalue=()):
        assert len(together) <= (max(1, min(share, TOGETHER)) if latency < 0.0005 else 1)
        bytes_ = sum(request.length for request in together)
        assert bytes_ <= LIMIT
        # No fewer than would go.
        full = latency >= 0.0005 or len(together) >= min(share, TOGETHER)
        assert full or not following or bytes_ + following[0].length > LIMIT


def test_nothing_is_taken_together_before_the_host_is_known() -> None:
    extents = [Extent(192 * KiB * number, 64 * KiB) for number in range(100)]
    assert len(Planner(extents, 100 * MiB).next(Observed(), 16)) == 1


@given(extents_of(64 * KiB, 400), bandwidths)
def test_without_latency_merging_changes_nothing(extents: list[Extent], bandwidth: float) -> None:
    size = 500 * 64 * KiB
    merged = drain(Planner(extents, size, limit=LIMIT), seen(0.0002, bandwidth))
    assert merged == drain(Planner(extents, size, limit=LIMIT, merge=False), Observed())


@given(extents_of(64 * KiB, 400), latencies, bandwidths, st.sampled_from([64 * KiB, 128 * KiB]))
def test_chunks_are_never_cut(extents: list[Extent], latency: float, bandwidth: float, chunk: int) -> None:
    whole = merge(Extent(extent.offset // chunk * chunk, -(-extent.length // chunk) * chunk) for extent in extents)
    for request in drain(Planner(whole, 600 * 64 * KiB, limit=LIMIT), seen(latency, bandwidth)):
        assert all(extent.offset % chunk == 0 and extent.length % chunk == 0 for extent in request.wanted)


@example([Extent(0, 64 * KiB), Extent(1376256, 786432)], 0.002, 2e9)
@given(extents_of(64 * KiB, 2000), latencies, bandwidths)
def test_the_model_never_prefers_the_plan_of_others(extents: list[Extent], latency: float, bandwidth: float) -> None:
    """Priced by the model itself, the plan costs no more than exact reads, and no more than whole aligned blocks."""
    observed = seen(latency, bandwidth)
    requests = drain(Planner(extents, 4096 * 64 * KiB, limit=2 * MiB), observed)
    price = sum(latency + request.length / bandwidth for request in requests)
    exact = drain(Planner(extents, 4096 * 64 * KiB, limit=2 * MiB, merge=False), observed)
    blocks = {block for extent in extents for block in range(extent.offset // (2 * MiB), -(-extent.end // (2 * MiB)))}
    assert price <= 1.05 * sum(latency + request.length / bandwidth for request in exact) + 1e-9
    if latency * bandwidth > 4 * MiB:
        assert len(requests) <= len(blocks)


def test_a_gap_is_read_along_where_it_is_cheaper_than_a_request() -> None:
    dirty = [Extent(0, 64 * KiB), Extent(192 * KiB, 64 * KiB), Extent(1024 * KiB, 64 * KiB)]
    # 10 ms at 20 MB/s are 200 kB: the first gap (128 KiB) is cheaper, the second (768 KiB) is not.
    requests = drain(Planner(dirty, 2 * MiB), seen(0.010, 20e6))
    assert requests == [
        Request(0, 256 * KiB, (Extent(0, 64 * KiB), Extent(192 * KiB, 64 * KiB))),
        Request(1024 * KiB, 64 * KiB, (Extent(1024 * KiB, 64 * KiB),)),
    ]


def test_the_model_finds_latency_and_bandwidth_among_outliers() -> None:
    observed = Observed()
    random = Random(7)
    for i in range(64):
        length = random.choice([64 * KiB, 512 * KiB, 2 * MiB])
        slow = random.random() * 0.2 if i % 5 == 0 else random.random() * 1e-4
        observed.add(length, 0.010 + length / 50e6 + slow)
    assert observed.latency == pytest.approx(0.010, rel=0.05)
    assert observed.bandwidth == pytest.approx(50e6, rel=0.05)


def test_a_busy_client_is_not_taken_for_a_slow_network() -> None:
    observed = Observed()
    for i in range(64):
        observed.add(64 * KiB, 0.0002 if i % 8 == 0 else 0.004)
    assert observed.gap == 0
