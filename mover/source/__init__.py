"""Where the bytes of a disk come from. A new kind of source is one more file here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from protocol.arena import Arena
from protocol.extent import Extent

# Called with the disk offset of a view, the view, and the extents in it that were asked for. The view may be reused
# once the call returns. Sources call it from several tasks at once.
Take = Callable[[int, memoryview, Sequence[Extent]], Awaitable[None]]


class Source(Protocol):
    """Delivers extents of one disk."""

    async def deliver(self, extents: Sequence[Extent], arena: Arena, take: Take) -> int:
        """Call `take` until every one of `extents` has been delivered exactly once, in any order.

        Returns the bytes that crossed the wire, which can be more than was asked for. Raises `ProtocolError`.
        """
        ...
