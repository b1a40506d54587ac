"""A stream piece by piece: content of a disk is received where it belongs, what stands between into a small buffer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from protocol.xapi.export import ExportStream

# Content that is shorter is copied: it is not worth waiting for alone.
_WORTH = 64 << 10
# What stands between two stretches of content is seldom longer: checksums, headers, bitmaps.
_BETWEEN = 2 << 10

# Where the disk's bytes from an offset on belong, at most so many of them; an empty view if nowhere.
Place = Callable[[int, int], Awaitable[memoryview]]


class Inflow:
    """Reads `stream`. `place` says where content belongs; None: all is read into the stream's buffer.

    `placed` tells whether the piece that `next` returned last was received where it belongs.
    """

    def __init__(self, stream: ExportStream) -> None:
        self.place: Place | None = None
        self.placed = False
        self._stream = stream
        self._small = False

    async def next(self, coming: tuple[int, int] | None) -> memoryview:
        """The next bytes, valid until the next call; empty at the end. Raises as `ExportStream.read` does.

        `coming` is where on the disk they belong and how many of them do, if they are content.
        """
        small, self._small, self.placed = self._small, False, False
        if self.place is not None and coming is not None and coming[1] >= _WORTH:
            room = await self.place(*coming)
            if room:
                self.placed = True
                return room[: await self._stream.readinto(room)]
        # A small piece is to end a little behind where long content begins. If it did not, it was of no use.
        if self.place is None or small:
            return await self._stream.read_view()
        self._small = True
        return await self._stream.read_view(_BETWEEN + (0 if coming is None else coming[1]))
