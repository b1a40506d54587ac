"""Several users of one store in memory, each in threads of its own, and a scheduler that says who makes the next call.

Every call of a back end is a step. One seed is one schedule: who runs, for how long, and who dies where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread

from mover.store.backend import LOCAL, Buffer, ObjectMissingError, Tuning

Objects = dict[str, bytes]


class Crashed(BaseException):
    """The process is no more: nothing it calls has an effect."""


@dataclass
class MemoryUpload:
    """The object gets its name at commit."""

    backend: MemoryBackend
    key: str
    data: bytearray = field(default_factory=bytearray)

    def write(self, buffers: Sequence[Buffer]) -> None:
        for one in buffers:
            self.data += one

    def commit(self) -> bool:
        return self.backend.put(self.key, bytes(self.data))

    def abort(self) -> None:
        pass


@dataclass
class MemoryBackend:
    """`step` is called before each access."""

    objects: Objects
    step: Callable[[], None] = lambda: None
    location: str = "memory"
    tuning: Tuning = LOCAL

    def create(self, key: str) -> MemoryUpload:
        return MemoryUpload(self, key)

    def put(self, key: str, data: bytes) -> bool:
        self.step()
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.step()
        data = self._whole(key)
        return data[offset:] if length is None else data[offset : offset + length]

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        data = self.get(key, offset, len(view))
        view[: len(data)] = data
        return len(data)

    def map(self, key: str) -> memoryview:
        return memoryview(self.get(key))

    def renew(self) -> None:
        pass

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.step()
        return iter([(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)])

    def delete(self, key: str, *, durable: bool = False) -> None:
        self.step()
        self.objects.pop(key, None)

    def close(self) -> None:
        pass

    def _whole(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError as error:
            raise ObjectMissingError(key) from error


class Actor:
    """One user of the store. It may have several threads; each of their calls is a step of this actor."""

    def __init__(self, name: str, turn: Condition, work: Callable[[Actor], None], dies_at: int | None) -> None:
        self.name = name
        self.steps = 0
        self.asking = 0
        self.granted = 0
        self.waits = False
        self.dies_at = dies_at
        self.failure: BaseException | None = None
        self.done = False
        self._turn = turn
        self._work = work
        self.thread = Thread(target=self._run, name=name, daemon=True)

    def step(self) -> None:
        """Wait until it is this actor's turn. Raises `Crashed` when it has died."""
        with self._turn:
            self.asking += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.granted)
            self.granted -= 1
            self.asking -= 1
            self.steps += 1
            if self.dies_at is not None and self.steps >= self.dies_at:
                raise Crashed

    def sleep(self, seconds: float) -> None:
        """Let the others go on."""
        self.waits = True
        self.step()

    def _run(self) -> None:
        try:
            self._work(self)
        except Crashed:
            pass
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failure = error
        with self._turn:
            self.done = True
            self._turn.notify_all()


class Turns:
    """Whose turn it is. Even seeds: bursts of some length; odd ones: one after the other, with three interruptions.

    The second finds what takes few but well-placed interruptions, the first what takes many.
    """

    def __init__(self, seed: int, actors: Sequence[Actor]) -> None:
        self._rng = random.Random(seed)
        self._order = list(actors)
        self._rng.shuffle(self._order)
        self._staying = self._rng.choice([0.3, 0.8, 0.95, 0.98]) if seed % 2 == 0 else 1.0
        self._interruptions = set() if seed % 2 == 0 else {self._rng.randint(1, 40 * len(actors)) for _ in range(3)}
        self._step = 0

    def next(self) -> Actor:
        """The first in the order that lives; who is interrupted goes to its end, or anywhere."""
        self._step += 1
        self._order = [actor for actor in self._order if not actor.done]
        first = self._order[0]
        tired, first.waits = first.waits and self._rng.random() < 0.5, False
        if tired or self._step in self._interruptions:
            self._order.append(self._order.pop(0))
        elif self._rng.random() > self._staying:
            self._rng.shuffle(self._order)
        return self._order[0]


class Script:
    """Turns as written down: so many steps of this one, then of that one; at the end each in turn to its end."""

    def __init__(self, script: Sequence[tuple[str, int]], actors: Sequence[Actor]) -> None:
        by_name = {actor.name: actor for actor in actors}
        self._left = [(by_name[name], steps) for name, steps in script] + [(actor, END) for actor in actors]

    def next(self) -> Actor:
        """The first that is to go on and has not ended."""
        while self._left[0][0].done or not self._left[0][1]:
            self._left.pop(0)
        actor, steps = self._left[0]
        self._left[0] = actor, steps - 1
        return actor


# More steps than anybody takes.
END = 1 << 30


def play(
    schedule: int | Sequence[tuple[str, int]],
    works: dict[str, Callable[[Actor], None]],
    deaths: dict[str, int],
) -> dict[str, Actor]:
    """Run all to their end, in an order made from a seed, or as scripted; `deaths` says who dies at which step."""
    turn = Condition()
    actors = [Actor(name, turn, work, deaths.get(name)) for name, work in works.items()]
    turns = Turns(schedule, actors) if isinstance(schedule, int) else Script(schedule, actors)
    for actor in actors:
        actor.thread.start()
    with turn:
        while True:
            turn.wait_for(lambda: all(actor.done or actor.asking > actor.granted for actor in actors))
            if all(actor.done for actor in actors):
                break
            turns.next().granted += 1
            turn.notify_all()
    for actor in actors:
        actor.thread.join()
    return {actor.name: actor for actor in actors}
