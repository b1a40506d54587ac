"""Several users of one store in memory, each in threads of its own, and a scheduler that says who makes the next call.

Every call of a back end is a step. One seed is one schedule: who runs, for how long, and who dies where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread

from mover.store.backend import Buffer, ObjectMissingError

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

    def size(self, key: str) -> int:
        self.step()
        return len(self._whole(key))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.step()
        return iter([(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)])

    def delete(self, key: str, *, durable: bool = False) -> None:
        self.step()
        self.objects.pop(key, None)

    def tidy(self) -> None:
        pass

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


def play(seed: int, works: dict[str, Callable[[Actor], None]], deaths: dict[str, int]) -> dict[str, Actor]:
    """Run all to their end, in the order that `seed` gives; `deaths` says who dies at which step."""
    rng = random.Random(seed)
    turn = Condition()
    actors = [Actor(name, turn, work, deaths.get(name)) for name, work in works.items()]
    # Short turns, long ones, or now this and then that.
    staying = rng.choice([0.3, 0.8, 0.95, 0.98])
    current = rng.choice(actors)
    for actor in actors:
        actor.thread.start()
    with turn:
        while True:
            turn.wait_for(lambda: all(actor.done or actor.asking > actor.granted for actor in actors))
            living = [actor for actor in actors if not actor.done]
            if not living:
                break
            if current.done or current.waits or rng.random() > staying:
                current.waits = False
                current = rng.choice([actor for actor in living if actor is not current] or living)
            current.granted += 1
            turn.notify_all()
    for actor in actors:
        actor.thread.join()
    return {actor.name: actor for actor in actors}
