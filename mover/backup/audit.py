"""Is what CBT calls unchanged unchanged? A sample is read and compared with the last restore point.

CBT is kept by the storage of the pool, and what it forgets no incremental reads. A sample of `n` chunks finds a fault
that touches the share `p` of a disk with probability 1 - (1 - p)^n: 300 chunks find one of 1 % in 19 of 20 runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mover.backup.session import Session
from mover.source import Source, Take
from mover.store import PointDisk
from mover.units import format_size
from protocol.block import Block
from protocol.extent import Extent, gaps, merge

UNTRUE = "CBT called parts unchanged that have changed, so all of it is read"


class Audit(NamedTuple):
    """`chunks` were looked at, and `missed` of them had changed; `read` bytes crossed the wire."""

    chunks: int
    missed: list[Extent]
    read: int

    def __str__(self) -> str:
        if not self.missed:
            return f"{self.chunks} blocks that CBT calls unchanged are what the last restore point has"
        first = self.missed[0].offset
        return (
            f"CBT IS NOT TO BE TRUSTED: of {self.chunks} blocks that it calls unchanged some have changed, the first "
            f"at {format_size(first)} (byte {first}); the disk is read in full. Restore points since its last full may "
            "lack changes. To have CBT begin anew: xe vdi-disable-cbt, then run the job"
        )


async def audit(
    session: Session, source: Source, base: PointDisk, changed: Sequence[Extent], size: int, chunks: int
) -> Audit:
    """Compare up to `chunks` random chunks that are not in `changed` (whole chunks) with the state `base`.

    `source` reads the snapshot of `size` bytes whose changes since `base` those are. Raises `ProtocolError`,
    `StoreDamagedError`.
    """
    sample = pick(lambda: gaps(changed, min(size, base.size)), session.store.chunk_size, chunks)
    disk = session.store.disk(base.root, base.size)
    missed: list[Extent] = []

    def compare(blocks: Sequence[Block]) -> None:
        for block in blocks:
            for extent in block.wanted:
                missed.extend(disk.differing(extent.offset, block.part(extent)))

    if not sample:
        return Audit(0, [], 0)
    read = await source.deliver(merge(sample), session.arena, Take(session.executor, compare))
    return Audit(len(sample), merge(missed), read)


def pick(extents: Callable[[], Iterable[Extent]], chunk: int, number: int) -> list[Extent]:
    """Up to `number` different chunks of `chunk` bytes of what `extents` (whole chunks) hold, at random, in order.

    There may be too many extents for a list of them, so `extents` is asked for them twice.
    """
    count = sum(-(-extent.length // chunk) for extent in extents())
    places = iter(sorted(random.sample(range(count), min(number, count))))
    chosen: list[Extent] = []
    before = 0
    place = next(places, None)
    for extent in extents():
        after = before - (-extent.length // chunk)
        while place is not None and place < after:
            start = extent.offset + (place - before) * chunk
            chosen.append(Extent(start, min(chunk, extent.end - start)))
            place = next(places, None)
        before = after
    return chosen
