"""Where the bytes of a disk come from. A new kind of source is one more file here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mover.pipeline.take import Take
from protocol.arena import Arena
from protocol.extent import Extent

__all__ = ["Source", "Take"]


class Source(Protocol):
    """Delivers extents of one disk."""

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """Call `take` until every one of `extents` has been delivered exactly once, in any order.

        Returns the bytes that crossed the wire, which can be more than was asked for. Raises `ProtocolError`.
        """
        ...
