"""Object storage that fails: answers are lost, the server is busy or gone, or takes conditions and ignores them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import pytest

from mover.errors import FencedError, StoreIoError, StoreUnansweredError, StoreUnfitError
from mover.store import Patience, Store
from mover.store.probe import refuse_unfit
from tests.s3_server import Fate, FaultyServer, faulty_server
from tests.store_fixtures import CHUNK, back_up, noise, point_of, restore, small_packs, text, write_disk

FATES: list[list[Fate]] = [
    ["unanswered"],
    ["lost"],
    ["busy"],
    ["lost", "unanswered"],
    ["busy", "unanswered", "lost"],
]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        yield running


def only(fates: list[Fate], method: str = "PUT", prefix: str = "") -> object:
    """These fates for the first requests of a kind; then all is well."""
    left = iter(fates)
    return lambda done, key: next(left, "") if done == method and key.startswith(prefix) else ""


@pytest.mark.parametrize("fates", FATES)
def test_a_put_whose_answer_is_lost_is_found_out(server: FaultyServer, fates: list[Fate]) -> None:
    backend = server.backend()
    server.fate = only(fates)  # type: ignore[assignment]
    assert backend.put("key", b"mine"), "it is ours, whether the first or a later request did it"
    assert server.objects == {"key": b"mine"}
    server.fate = only(["unanswered", *fates])  # type: ignore[assignment]
    assert not backend.put("key", b"other"), "somebody else's"
    assert server.objects == {"key": b"mine"}


def test_a_put_that_is_never_answered(server: FaultyServer) -> None:
    server.fate = lambda method, key: "lost"
    with pytest.raises(StoreUnansweredError, match=f"127.0.0.1:{server.port}"):
        server.backend(retry_for=0.5).put("key", b"mine")
    server.fate = lambda method, key: "forbidden"
    with pytest.raises(StoreIoError) as caught:
        server.backend().put("key", b"mine")
    assert not isinstance(caught.value, StoreUnansweredError), "that is an answer"
    assert "AccessDenied" in str(caught.value) and "access key" in caught.value.hint


def test_backups_and_restores_over_a_bad_connection(server: FaultyServer) -> None:
    """A tenth of all requests fail in one way or another."""
    rng = random.Random(3)
    fates: list[Fate] = ["unanswered", "lost", "busy"]
    disk = b"".join(noise(number) for number in range(12)) + text("t", 3 * CHUNK)
    store = small_packs(Store.create(server.backend()), 2 * CHUNK)
    server.fate = lambda method, key: rng.choice(fates) if rng.random() < 0.1 else ""
    points = {back_up(store, noise(-number) + disk, number): noise(-number) + disk for number in range(3)}
    for point, content in points.items():
        assert restore(Store.open(server.backend()), point) == content
    first = next(iter(points))
    again = Store.open(server.backend())
    assert len(again.forget([again.point(first)])) == 1
    again.prune()
    server.fate = lambda method, key: ""
    last = Store.open(server.backend())
    assert {point.id for point in last.points()} == set(points) - {first}
    assert list(last.verify(deep=True)) == []
    assert not [key for key in server.objects if key.startswith(("lease/", "cond/", "trash/"))]


def test_an_undecided_commit_is_decided_by_a_prune(server: FaultyServer) -> None:
    """Its lease stays, so that no prune deletes what it needs before the prune has shut it out."""
    store = Store.create(server.backend(retry_for=0.3))
    for number in range(2):
        back_up(store, noise(-number), number)
    store.forget(store.points()[:1])
    with pytest.raises(StoreUnansweredError), store.writer() as writer:
        root = write_disk(writer, noise(1))
        server.fate = lambda method, key: "lost" if key.startswith("points/") else ""
        writer.commit(point_of(root, CHUNK, 3, "vm"))
    server.fate = lambda method, key: ""
    late = f"points/{writer.wid.hex()}.0"
    assert [key for key in server.objects if key.startswith("lease/")] == [f"lease/{writer.wid.hex()}"]
    ticks = count()
    did = Store.open(server.backend()).prune(
        patience=Patience(silence=5, poll=0, clock=lambda: float(next(ticks)), sleep=lambda _: None)
    )
    assert (did.fenced, did.deleted) == (1, 4), "what a silent writer has written is nobody's, too"
    assert not server.backend().put(late, b"the request that was on its way"), "it comes too late"
    assert len(Store.open(server.backend()).points()) == 1


def test_an_undecided_commit_is_decided_by_the_next_one(server: FaultyServer) -> None:
    store = Store.create(server.backend(retry_for=0.3))
    with store.writer() as writer:
        root = write_disk(writer, noise(1))
        server.fate = lambda method, key: "lost" if key.startswith("points/") else ""
        with pytest.raises(StoreUnansweredError):
            writer.commit(point_of(root, CHUNK, 1))
        server.fate = lambda method, key: ""
        second = writer.commit(point_of(root, CHUNK, 2))
    assert {point.record.created for point in store.points()} == {1.0, 2.0}
    assert restore(store, second) == noise(1)
    assert not [key for key in server.objects if key.startswith("lease/")]


def test_a_server_that_ignores_conditions_is_refused(server: FaultyServer) -> None:
    server.heeds_conditions = False
    with pytest.raises(StoreUnfitError, match="If-None-Match"):
        refuse_unfit(server.backend())
    assert server.objects == {}
    server.heeds_conditions = True
    refuse_unfit(server.backend())


def test_a_server_that_stops_heeding_conditions_loses_its_prunes(server: FaultyServer) -> None:
    """A store may be moved to another server: no prune goes on there that could not shut a writer out."""
    store = Store.create(server.backend())
    for number in range(2):
        back_up(store, noise(number), number)
    store.forget([store.points()[0]])
    server.heeds_conditions = False
    before = dict(server.objects)
    with pytest.raises(StoreUnfitError):
        Store.open(server.backend()).prune()
    assert set(server.objects) == set(before)


def test_a_list_that_breaks_off(server: FaultyServer) -> None:
    backend = server.backend()
    for number in range(5):
        backend.put(f"a/{number}", b"x")
    server.fate = only(["lost", "busy"], "GET")  # type: ignore[assignment]
    assert [key for key, _ in backend.list("a/")] == [f"a/{number}" for number in range(5)]
    server.fate = lambda method, key: "lost"
    with pytest.raises(StoreIoError, match="cannot list"):
        list(server.backend(retry_for=0.3).list("a/"))


def test_a_fenced_writer_says_so(server: FaultyServer) -> None:
    store = Store.create(server.backend())
    with pytest.raises(FencedError), store.writer() as writer:
        server.backend().put(f"points/{writer.wid.hex()}.0", b"FENCE\n")
        writer.commit(point_of(write_disk(writer, noise(1)), CHUNK))
