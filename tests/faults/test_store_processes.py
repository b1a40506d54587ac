"""Several processes, as on several machines, write the same data to one store at once: it costs space, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mover.store import Patience
from tests.store_backends import Place, Weed
from tests.store_fixtures import CHUNK, noise, restore, text

WRITERS = 3
# Looks at the index, and writes only once told to: by then all have seen that nothing is stored yet.
WRITE = """
import sys
from mover.store import Store
from tests.store_fixtures import point_of, write_disk
from tests.faults.test_store_processes import disk

who = int(sys.argv[2])
with Store.open(sys.argv[1]).writer() as writer:
    print("ready", flush=True)
    sys.stdin.readline()
    data = disk(who)
    root = write_disk(writer, data, slot=4)
    print("written", flush=True)
    sys.stdin.readline()
    writer.commit(point_of(root, len(data), who, f"vm{who}"))
"""


def disk(who: int) -> bytes:
    """All have most in common."""
    return b"".join(noise(number) for number in range(16)) + text(who) + bytes(CHUNK) + text("all", 100)


class Process:
    def __init__(self, place: Place, who: int, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITE, place.url, str(who)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def hears(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> int:
        code = self.process.wait(60)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return code


def test_processes_that_write_the_same_at_once(place: Place, request: pytest.FixtureRequest) -> None:
    """One of them is killed before it commits."""
    server: Weed | None = request.getfixturevalue("weed") if place.url.startswith("s3:") else None
    place.create()
    processes = [Process(place, who, server.environment() if server else {}) for who in range(WRITERS)]
    for process in processes:
        process.hears("ready")
    for process in processes:
        process.go_on()
    for process in processes:
        process.hears("written")
    processes[0].process.send_signal(signal.SIGKILL)
    for process in processes[1:]:
        process.go_on()
    assert [process.end() for process in processes] == [-signal.SIGKILL] + [0] * (WRITERS - 1)
    store = place.open()
    assert {point.record.vm_name for point in store.points()} == {f"vm{who}" for who in range(1, WRITERS)}
    for point in store.points():
        assert restore(store, point.id) == disk(int(point.record.created))
    assert list(place.open().verify(deep=True)) == []
    stored = sum(size for key, size in place.objects("packs/").items() if key.endswith(".d"))
    assert 16 * CHUNK < stored < WRITERS * 17 * CHUNK, "equal data written twice costs space"
    with place.open().writer() as writer:
        assert writer.seal(memoryview(disk(1))).new == 0
    # The one that was killed is shut out.
    pruned = place.open().prune(min_live=0.01, patience=Patience(silence=0.3, poll=0.1))
    assert pruned.fenced == 1
    assert list(place.open().verify(deep=True)) == []
