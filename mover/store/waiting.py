"""Waiting for those who write, before what they may be counting on is deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass

from mover.store.backend import Backend, ObjectMissingError
from mover.store.lease import read_leases, remove_lease
from mover.store.names import PointName
from mover.store.point import FENCE

# Told what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Patience:
    """A writer that has not renewed its lease for `silence` seconds is shut out; looked at every `poll` seconds.

    `settle` is twice the time in seconds by which lists may lag behind; 0 where they never do.
    """

    silence: float = 900.0
    poll: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    settle: float = 0.0


def wait_for_writers(
    backend: Backend, patience: Patience, progress: Progress, *, spare: Container[bytes] = frozenset()
) -> int:
    """Until all who write now have finished or are shut out, but for `spare`; how many were shut out.

    Who begins later does not count. Raises what the store and `progress` raise.
    """
    writers = {wid: renewals for wid, renewals in read_leases(backend).items() if wid not in spare}
    return _watch(backend, patience, progress, "waiting for backups that are running", writers, until_gone=True)


def shut_out_the_silent(backend: Backend, patience: Patience, progress: Progress) -> int:
    """Until all who hold a lease now show a sign of life, have finished, or are shut out; how many were shut out."""
    writers = read_leases(backend)
    return _watch(backend, patience, progress, "looking for backups that are still running", writers, until_gone=False)


def settle(patience: Patience, progress: Progress) -> None:
    """Until lists show everything that was there when this was called."""
    until = patience.clock() + patience.settle
    while patience.clock() < until:
        progress("waiting for lists to settle", 0, 1)
        patience.sleep(min(patience.poll, patience.settle))


def _watch(
    backend: Backend,
    patience: Patience,
    progress: Progress,
    doing: str,
    writers: Mapping[bytes, frozenset[int]],
    *,
    until_gone: bool,
) -> int:
    """Of the silence of writers this machine's clock is the only judge: nothing that they have written is a time."""
    waiting = dict(writers)
    since = dict.fromkeys(waiting, patience.clock())
    total, shut_out = len(waiting), 0
    while waiting:
        for wid, renewals in list(waiting.items()):
            if patience.clock() - since[wid] > patience.silence:
                shut_out += _fence(backend, wid)
                remove_lease(backend, wid, renewals)
        now = read_leases(backend)
        alive = {wid for wid, renewals in waiting.items() if wid in now and now[wid] != renewals}
        for wid in [wid for wid in waiting if wid not in now or (wid in alive and not until_gone)]:
            del waiting[wid]
        for wid in alive & waiting.keys():
            waiting[wid], since[wid] = now[wid], patience.clock()
        progress(doing, total - len(waiting), total)
        if waiting:
            patience.sleep(patience.poll)
    return shut_out


def _fence(backend: Backend, wid: bytes) -> bool:
    """Take the number of this writer's next commit: exactly one of the two gets it. False if a fence was there."""
    number = 0
    while not backend.put(PointName(wid, number).key, FENCE):
        with suppress(ObjectMissingError):
            if backend.get(PointName(wid, number).key, 0, len(FENCE) + 1) == FENCE:
                return False
        number += 1
    return True
