"""Reading packs ahead: the same bytes, fewer requests, and no more of them for who jumps about."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from mover.errors import StoreIoError
from mover.store.backend import ObjectMissingError
from mover.store.read_ahead import BLOCK, ReadAhead
from tests.store_fixtures import noise
from tests.store_schedules import MemoryBackend

SIZE = 16 * (1 << 20) + 12345


@dataclass
class CountingBackend(MemoryBackend):
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    failing: bool = False

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.failing:
            raise StoreIoError("gone")
        self.asked.append((key, offset, length or 0))
        return super().get(key, offset, length)


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend({"a": noise("a", SIZE), "b": noise("b", SIZE)})


@pytest.fixture
def ahead(backend: CountingBackend) -> Iterator[ReadAhead]:
    made = ReadAhead(backend, 16 << 20)
    yield made
    made.close()


def test_reading_on(backend: CountingBackend, ahead: ReadAhead) -> None:
    for key in ("a", "b"):
        for offset in range(64, SIZE, 300_000):
            assert ahead.get(key, offset, 300_000) == backend.objects[key][offset : offset + 300_000]
    assert len(backend.asked) <= 2 * (2 + SIZE // BLOCK + 1)


def test_a_little_out_of_order(backend: CountingBackend, ahead: ReadAhead) -> None:
    """As several threads do that share one disk."""
    offsets = list(range(64, SIZE, 300_000))
    for at in range(0, len(offsets) - 3, 4):
        offsets[at : at + 4] = [offsets[at + 1], offsets[at], offsets[at + 3], offsets[at + 2]]
    for offset in offsets:
        assert ahead.get("a", offset, 300_000) == backend.objects["a"][offset : offset + 300_000]
    assert len(backend.asked) <= 12


def test_jumping_about_reads_what_was_asked_for(backend: CountingBackend, ahead: ReadAhead) -> None:
    rng = random.Random(1)
    wanted = [(rng.choice("ab"), rng.randrange(0, SIZE, 3 << 20) + rng.randrange(1000), 70_000) for _ in range(40)]
    for key, offset, length in wanted:
        assert ahead.get(key, offset, length) == backend.objects[key][offset : offset + length]
    assert sum(length for _, _, length in backend.asked) < 45 * 70_000 + 8 * BLOCK


def test_what_fails_is_asked_for_again(backend: CountingBackend, ahead: ReadAhead) -> None:
    for offset in (0, 1000, 2000):
        ahead.get("a", offset, 1000)
    backend.failing = True
    with pytest.raises(StoreIoError):
        for offset in range(3000, SIZE, 1 << 19):
            ahead.get("a", offset, 1 << 19)
    backend.failing = False
    for offset in range(3000, SIZE, 1 << 19):
        assert ahead.get("a", offset, 1 << 19) == backend.objects["a"][offset : offset + (1 << 19)]
    with pytest.raises(ObjectMissingError):
        ahead.get("c", 0, 10)
