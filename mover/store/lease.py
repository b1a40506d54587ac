"""Leases: a writer's sign of life, there from before it looks at the index until after its last commit.

`lease/<wid>` says that the writer exists and never changes; `lease/<wid>.<n>` is its n-th renewal. Safety rests on the
first alone. Renewals only tell a prune, by its own clock, how long a writer has been silent.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from mover.errors import FencedError, MoverError, StoreDamagedError
from mover.store.backend import Backend, ObjectMissingError
from mover.store.names import LEASES, lease_key, parse_lease

# Seconds between renewals that are driven by what a writer does.
RENEW_EVERY = 30.0
_MAX_ABOUT = 4096


class Lease:
    """The lease of the writer `wid`. Any thread may renew it."""

    def __init__(self, backend: Backend, wid: bytes, *, repair: bool = False) -> None:
        """Take it, for a backup or a `repair`: durable on return. Raises `StoreFullError`, `StoreIoError`."""
        self.wid = wid
        self._backend = backend
        self._renewals = 0
        self._lock = Lock()
        about = {"host": platform.node(), "pid": os.getpid(), "started": int(time.time()), "repair": repair}
        backend.put(lease_key(wid), json.dumps(about, sort_keys=True).encode())
        self._due = time.monotonic() + RENEW_EVERY

    def renew_if_due(self) -> None:
        """Renew it if that was not done for 30 seconds. Cheap if it was."""
        if time.monotonic() >= self._due:
            self.renew()

    def renew(self) -> None:
        """Say that the writer lives. Raises `FencedError` if a prune has given it up."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._due = time.monotonic() + RENEW_EVERY
            self._require()
            self._renewals += 1
            self._backend.put(lease_key(self.wid, self._renewals), b"")
            if self._renewals > 1:
                self._backend.delete(lease_key(self.wid, self._renewals - 1))
        finally:
            self._lock.release()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is not there any more for a writer that was shut out is no damage: `FencedError` is raised instead.

        A prune takes the lease away before it deletes what the writer may have built upon.
        """
        try:
            yield
        except StoreDamagedError as error:
            try:
                self._require()
            except FencedError as shut_out:
                raise shut_out from error
            except MoverError:
                pass
            raise

    def _require(self) -> None:
        try:
            self._backend.get(lease_key(self.wid), 0, 1)
        except ObjectMissingError as error:
            raise fenced() from error

    def release(self) -> None:
        """The writer will not commit any more. Failing costs the next prune a wait, no more."""
        with self._lock, suppress(MoverError):
            remove_lease(self._backend, self.wid, (self._renewals,))


def fenced() -> FencedError:
    """What a writer says that was shut out."""
    return FencedError("a prune has shut this run out because it was silent for too long", "run it again")


def is_repair(backend: Backend, wid: bytes) -> bool:
    """Whether the lease of `wid` is that of a repair. False if it is gone, or says nothing."""
    with suppress(ObjectMissingError, ValueError):
        about: object = json.loads(backend.get(lease_key(wid), 0, _MAX_ABOUT))
        return isinstance(about, dict) and about.get("repair") is True
    return False


def remove_lease(backend: Backend, wid: bytes, renewals: Iterable[int]) -> None:
    """Remove a lease; its renewals first."""
    for number in renewals:
        if number:
            backend.delete(lease_key(wid, number))
    backend.delete(lease_key(wid))


def read_leases(backend: Backend) -> dict[bytes, frozenset[int]]:
    """The writers that hold a lease, and the numbers of the renewals seen."""
    holders: set[bytes] = set()
    renewals: dict[bytes, set[int]] = {}
    for key, _ in backend.list(LEASES):
        if (name := parse_lease(key)) is None:
            continue
        wid, number = name
        if number is None:
            holders.add(wid)
        else:
            renewals.setdefault(wid, set()).add(number)
    return {wid: frozenset(renewals.get(wid, ())) for wid in holders}
