"""Rubbish for the readers: a corpus that is replayed, and what comes of damaging it further for some seconds.

Whatever they are fed: an error is a `FormatError`, memory does not grow, they come to an end, and how the bytes are cut
into pieces makes no difference.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.fuzz.mutate import packed, variant
from tests.fuzz.targets import TARGETS, check

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*.bin"))
# The same in CI every time; elsewhere another each time, named if something is found.
SEED = 1 if "CI" in os.environ else random.SystemRandom().randrange(1 << 32)
SHORT = 2.0
LONG = float(os.environ.get("MOVER_FUZZ_SECONDS", "20"))


def test_there_is_a_corpus() -> None:
    for target in TARGETS:
        names = [path.name for path in FILES if path.name.startswith(f"{target}-")]
        assert any("-good-" in name for name in names)
        assert sum("-bad-" in name for name in names) > 5
    assert sum(path.stat().st_size for path in FILES) < 2 << 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_corpus_is_told_apart(path: Path) -> None:
    target, verdict, _ = path.name.split("-", 2)
    data = path.read_bytes()
    for place, consume in enumerate(TARGETS[target]):
        found = check(consume, data, random.Random(SEED), traced=True)
        # What is no good as a download may be good enough as a file, whose length is known.
        if place == 0 or verdict == "good":
            assert (found.error is None) == (verdict == "good"), found.error


def damage(target: str, seconds: float, folder: Path) -> int:
    """Try as many variants as there is time for. What fails is kept in a file, to be put into the corpus."""
    rng = random.Random(SEED)
    pool = [path.read_bytes() for path in FILES if path.name.startswith(f"{target}-")]
    reasons = set[tuple[str, int]]()
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or not count:
        data = variant(pool, rng)
        data = packed(data, rng) if target == "xva" and rng.random() < 0.2 else data
        for consume in TARGETS[target]:
            try:
                found = check(consume, data, rng, traced=count % 20 == 0)
            except BaseException:
                kept = folder / f"{target}-bad-{SEED}-{count}.bin"
                kept.write_bytes(data)
                print(f"{consume.__name__} fails on {kept} (seed {SEED})")
                raise
            # Whatever got as far, and to another end than all before, is worth damaging further.
            seen = (found.error.reason[:20] if found.error else "", min(len(found.events), 6))
            if seen not in reasons and len(data) < 20_000:
                reasons.add(seen)
                pool.append(data)
        count += 1
    return count


@pytest.mark.parametrize("target", TARGETS)
def test_some_seconds_of_damage(target: str, tmp_path: Path) -> None:
    assert damage(target, SHORT, tmp_path) > 10


@pytest.mark.slow
@pytest.mark.timeout(LONG + 120)
@pytest.mark.parametrize("target", TARGETS)
def test_a_long_time_of_damage(target: str, tmp_path: Path) -> None:
    assert damage(target, LONG, tmp_path) > 100
