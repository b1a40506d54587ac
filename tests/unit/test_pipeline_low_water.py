"""The low-water mark under every order of delivery."""

from hypothesis import given
from hypothesis import strategies as st

from mover.pipeline.low_water import LowWater
from protocol.extent import Extent, merge, split, total

UNIT = 64


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_mark_is_the_first_missing_byte(runs, piece, random):
    size = 80 * UNIT
    expected = merge(Extent(start * UNIT, length * UNIT) for start, length in runs)
    blocks = list(split(expected, piece * UNIT))
    random.shuffle(blocks)
    low_water = LowWater(expected, size)
    arrived: list[Extent] = []
    for block in blocks:
        missing = sorted(set(blocks) - set(arrived))
        assert low_water.mark == missing[0].offset
        assert not low_water.complete
        low_water.delivered(block)
        arrived.append(block)
    assert low_water.complete
    assert low_water.mark == size
    assert total(arrived) == total(expected)
