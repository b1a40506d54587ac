"""Whether a server does what a store rests on: there are some that take conditions and ignore them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mover.errors import StoreUnfitError
from mover.store.backend import Backend
from mover.store.names import PROBES, new_writer_id

_RACERS = 4
# Seconds. A probe lives for a few requests; whoever made one that is older has died.
_STALE = 86400.0


def refuse_unfit(backend: Backend) -> None:
    """Try put-if-absent, alone and in a race, and whether a list shows what was put. Raises `StoreUnfitError`.

    Leaves nothing behind, and whoever sees the objects meanwhile ignores names like theirs.
    """
    folder = f"{PROBES}{new_writer_id().hex()}/"
    keys = [f"{folder}once", f"{folder}race"]
    try:
        _put_twice(backend, keys[0])
        if backend.get(keys[0]) != b"first":
            raise _unfit(backend, "it does not give back what was put")
        with ThreadPoolExecutor(_RACERS, "mover-probe") as racers:
            won = list(racers.map(lambda number: backend.put(keys[1], b"%d" % number), range(_RACERS)))
        if won.count(True) != 1 or backend.get(keys[1]) != b"%d" % won.index(True):
            raise _unfit(backend, f"of {_RACERS} conditional puts of one name at once {won.count(True)} succeeded")
        if {key for key, _ in backend.list(folder)} != set(keys):
            raise _unfit(backend, "its list does not show what was just put")
        if backend.get(keys[0], 1, 3) != b"irs":
            raise _unfit(backend, "it does not give parts of objects")
    finally:
        for key in keys:
            backend.delete(key)


def refuse_overwriting(backend: Backend) -> None:
    """Try put-if-absent alone: three requests. Raises `StoreUnfitError`."""
    key = f"{PROBES}{new_writer_id().hex()}"
    try:
        _put_twice(backend, key)
    finally:
        backend.delete(key)


def stale(backend: Backend, now: float) -> Iterator[str]:
    """The probes that somebody has left behind who was killed, or could not remove them, long before `now` (Unix)."""
    for key, _ in backend.list(PROBES):
        try:
            made = int(key.removeprefix(PROBES)[:12], 16) / 1000
        except ValueError:
            continue
        if made < now - _STALE:
            yield key


def _put_twice(backend: Backend, key: str) -> None:
    # Different bytes: if an answer is lost, the object that is there must not pass for the other one.
    if not backend.put(key, b"first") or backend.put(key, b"second"):
        raise _unfit(backend, "it overwrites an object that a conditional put (If-None-Match: *) must leave alone")


def _unfit(backend: Backend, reason: str) -> StoreUnfitError:
    return StoreUnfitError(
        f"{backend.location} cannot hold a store: {reason}",
        "a store needs a server that supports conditional writes, as AWS, MinIO, Ceph and SeaweedFS do",
    )
