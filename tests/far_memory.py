"""A store in memory that is far away: answers get lost, what was asked for happens later or never, lists lag behind.

Time is counted in steps: calls of any back end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from mover.errors import StoreUnansweredError
from tests.store_schedules import MemoryBackend, Objects


@dataclass
class Far:
    """What all back ends of one place share. `lost` is the chance that the answer to a put is lost.

    Such a put has happened, happens within `latest` steps, or never does. A list may be `lag` steps old.
    """

    objects: Objects
    rng: random.Random
    lost: float = 0.0
    latest: int = 40
    lag: int = 0
    step: int = 0
    unanswered: int = 0
    late: list[tuple[int, str, bytes]] = field(default_factory=list)
    _past: list[tuple[int, dict[str, int]]] = field(default_factory=list)

    def tick(self) -> None:
        """A call is made: what is due happens."""
        self.step += 1
        self.let_happen(self.step)
        if self.lag:
            self._past.append((self.step, {key: len(data) for key, data in self.objects.items()}))
            while self._past[0][0] < self.step - self.lag:
                self._past.pop(0)

    def let_happen(self, until: int | None = None) -> None:
        """What is due by a step, or all that is still on its way."""
        due = [one for one in self.late if until is None or one[0] <= until]
        self.late = [one for one in self.late if one not in due]
        for _, key, data in due:
            self.objects.setdefault(key, data)

    def seen(self, prefix: str) -> list[tuple[str, int]]:
        """What a list shows."""
        now = {key: len(data) for key, data in self.objects.items()}
        shown = self.rng.choice(self._past)[1] if self._past else now
        return [(key, size) for key, size in sorted(shown.items()) if key.startswith(prefix)]


@dataclass
class FarBackend(MemoryBackend):
    """One client of a far place."""

    far: Far = field(default_factory=lambda: Far({}, random.Random(0)))

    def put(self, key: str, data: bytes) -> bool:
        self.step()
        self.far.tick()
        if self.far.rng.random() >= self.far.lost:
            return self._put(key, data)
        self.far.unanswered += 1
        fate = self.far.rng.choice(["done", "late", "never"])
        if fate == "done":
            self._put(key, data)
            if self.far.rng.random() < 0.5:
                # As a client does that tries again: what is there is our own.
                return self.objects[key] == data
        elif fate == "late":
            self.far.late.append((self.far.step + self.far.rng.randint(1, self.far.latest), key, data))
        raise StoreUnansweredError(f"{key}: no answer")

    def _put(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.far.tick()
        return super().get(key, offset, length)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.step()
        self.far.tick()
        return iter(self.far.seen(prefix))

    def delete(self, key: str, *, durable: bool = False) -> None:
        self.far.tick()
        super().delete(key, durable=durable)
