"""A download from a data handler. The stream's end and the 200 before it prove nothing: the task's success does.

A failure after the head comes as a complete HTTP response inside the body (xen-api issue 4603), at its start or after
megabytes of good data; the connection's close is the end of the stream either way.
"""

from __future__ import annotations

import aiohttp

from protocol.errors import OutcomeUnknownError, ProtocolError, TransferError
from protocol.xapi.body import body_of
from protocol.xapi.http import connection_error
from protocol.xapi.own_task import OwnTask
from protocol.xapi.wire import STATUS_LINE_LENGTH, failure_in_text, is_response_head

# Bytes received at a time for those who do not bring a buffer of their own.
_PIECE = 1 << 20
# An embedded response is a few hundred bytes; a disk that happens to begin like one is longer.
_MAX_EMBEDDED = 1 << 16


class ExportStream:
    """Bytes of one export, read once and in order. `received` counts what was given out.

    Read it to its end, then `finish`; or `abandon` it. Leaving without either counts as `abandon`.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, silence: float, task: OwnTask, what: str, length: int | None
    ) -> None:
        self.received = 0
        self.ended = False
        self._response = response
        self._body = body_of(response, silence)
        self._task = task
        self._what = what
        self._length = length
        self._piece = memoryview(bytearray(_PIECE))
        self._ahead = self._piece[:0]
        self._begun = False
        task.on_failure(self._body.fail)

    async def read(self, n: int) -> bytes:
        """Read up to `n` bytes; empty at the end. Raises XapiError, TransferError, OutcomeUnknownError."""
        piece = bytes(await self._some(n))
        self.received += len(piece)
        return piece

    async def read_view(self, most: int = _PIECE) -> memoryview:
        """Look at the next bytes, `most` of them, until the next read; empty at the end. Raises as `read` does.

        No more than those are taken from the connection, so what follows can be read into a buffer elsewhere.
        """
        view = await self._some(most, ahead=False)
        self.received += len(view)
        return view

    async def readinto(self, view: memoryview) -> int:
        """Fill `view` and return how much of it; less than all only at the end. Raises as `read` does."""
        filled = 0
        if self._ahead or not self._begun:
            some = await self._some(len(view))
            view[: len(some)] = some
            filled = len(some)
        while filled < len(view) and (length := await self._receive(view[filled:], len(view) - filled)):
            filled += length
        self.received += filled
        return filled

    async def finish(self) -> None:
        """Make sure that all was read, that nothing follows, and that the server says it went well."""
        surplus = await self._surplus()
        self.ended = True
        self._response.close()
        text = surplus.decode("utf-8", "replace") if is_response_head(surplus) else ""
        try:
            await self._task.success()
        except OutcomeUnknownError:
            raise failure_in_text(text, self._task.call) or self._error("its task vanished") from None
        if surplus:
            raise failure_in_text(text, self._task.call) or self._error("more bytes than belong to it")
        if self._length is not None and self.received != self._length:
            raise self._error(f"ended after {self.received} of {self._length} bytes")

    async def abandon(self) -> None:
        """Hang up early, on purpose: the task fails on the server, which is no error here."""
        self.ended = True
        self._response.close()
        await self._task.settle()

    async def _surplus(self) -> bytes:
        surplus = bytearray()
        while len(surplus) <= _MAX_EMBEDDED and (some := await self._some(_PIECE)):
            surplus += some
        return bytes(surplus)

    async def _some(self, n: int, *, ahead: bool = True) -> memoryview:
        """At most `n` bytes, which stay as they are until the next read. Others are received `ahead` of their time."""
        if not self._ahead:
            begun, self._begun = self._begun, True
            room = self._piece if ahead or not begun else self._piece[:n]
            length = await self._receive(room, 1 if begun else STATUS_LINE_LENGTH)
            if not begun and is_response_head(self._piece[:length]):
                length = await self._refuse_response(length)
            self._ahead = self._piece[:length]
        some, self._ahead = self._ahead[:n], self._ahead[n:]
        return some

    async def _refuse_response(self, length: int) -> int:
        """Raise what the server said, if all that is to come is a response; how much is there now if it is not."""
        while length <= _MAX_EMBEDDED and (more := await self._receive(self._piece[length:], 1)):
            length += more
        if length <= _MAX_EMBEDDED:
            raise await self._embedded(bytes(self._piece[:length]).decode("utf-8", "replace"))
        return length

    async def _receive(self, view: memoryview, least: int) -> int:
        try:
            return await self._body.receive(view, least)
        except (aiohttp.ClientError, OSError) as error:
            # A wrapper that hangs up rudely after the last byte is no failure if the task is none.
            self._response.close()
            await self._task.success_after(connection_error(error, None, self._what))
            return 0

    async def _embedded(self, text: str) -> ProtocolError:
        named = failure_in_text(text, self._task.call)
        if named is not None:
            return named
        await self._task.success_after(self._error("the server failed without saying why"))
        return self._error("the server failed without saying why")

    def _error(self, reason: str) -> TransferError:
        return TransferError(self._what, reason)
