"""What every part of a backup run shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from mover.backup.records import PoolRecords
from mover.backup.tags import Owner
from mover.backup.unfinished import Unfinished
from mover.events import Emit
from mover.job import HooksSection
from mover.pipeline.pace import Pace
from mover.store import Point, Store, Writer
from protocol.arena import Arena
from protocol.nbd import Budget, Observed
from protocol.tasks import in_thread
from protocol.xapi import Pool, Transfers

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """One run: the pool and the store it joins, and the bounded resources all its disks draw on.

    `records` are the pool's, and `points` the VMs' restore points (oldest first, by UUID), when the run began. `lost`
    are the roots of disks of which the store has lost a part, `unfinished` is for going on after a kill.
    """

    run: str
    job: str
    schedule: str | None
    owner: Owner
    pool: Pool
    transfers: Transfers
    store: Store
    writer: Writer
    executor: Executor
    arena: Arena
    budget: Budget
    observed: dict[str, Observed]
    pace: Pace
    disks: asyncio.Semaphore
    nbd_connections: int
    merge_gaps: bool
    hooks: HooksSection
    secret_variables: frozenset[str]
    lost: frozenset[bytes]
    records: PoolRecords
    points: Mapping[str, Sequence[Point]]
    unfinished: Unfinished
    emit: Emit

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking store work in a worker thread, and wait for its end even if the wait is cancelled."""
        return await in_thread(self.executor, work)
