"""A download from a data handler. The stream's end and the 200 before it prove nothing: the task's success does.

A failure after the head comes as a complete HTTP response inside the body (xen-api issue 4603), at its start or after
megabytes of good data; the connection's close is the end of the stream either way.
"""

from __future__ import annotations

import aiohttp

from protocol.errors import OutcomeUnknownError, ProtocolError, TransferError
from protocol.xapi.http import connection_error
from protocol.xapi.own_task import OwnTask
from protocol.xapi.wire import STATUS_LINE_LENGTH, failure_in_text, is_response_head

# An embedded response is a few hundred bytes; a disk that happens to begin like one is longer.
_MAX_EMBEDDED = 1 << 16


class ExportStream:
    """Bytes of one export, read once and in order. `received` counts what was given out.

    Read it to its end, then `finish`; or `abandon` it. Leaving without either counts as `abandon`.
    """

    def __init__(self, response: aiohttp.ClientResponse, task: OwnTask, what: str, length: int | None) -> None:
        self.received = 0
        self.ended = False
        self._response = response
        self._content = response.content
        self._task = task
        self._what = what
        self._length = length
        self._ahead = memoryview(b"")
        self._begun = False
        task.on_failure(self._content.set_exception)

    async def read(self, n: int) -> bytes:
        """Read up to `n` bytes; empty at the end. Raises XapiError, TransferError, OutcomeUnknownError."""
        if not self._ahead:
            self._ahead = memoryview(await self._next())
        piece = bytes(self._ahead[:n])
        self._ahead = self._ahead[len(piece) :]
        self.received += len(piece)
        return piece

    async def read_view(self) -> memoryview:
        """Take the next bytes as they came, without a copy; empty at the end. Raises as `read` does."""
        view = self._ahead or memoryview(await self._next())
        self._ahead = memoryview(b"")
        self.received += len(view)
        return view

    async def readinto(self, view: memoryview) -> int:
        """Fill `view` and return how much of it; less than all only at the end. Raises as `read` does."""
        filled = 0
        while filled < len(view):
            if not self._ahead:
                self._ahead = memoryview(await self._next())
                if not self._ahead:
                    break
            n = min(len(self._ahead), len(view) - filled)
            view[filled : filled + n] = self._ahead[:n]
            self._ahead = self._ahead[n:]
            filled += n
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
        surplus = bytearray(self._ahead)
        self._ahead = memoryview(b"")
        while len(surplus) <= _MAX_EMBEDDED and (chunk := await self._next()):
            surplus += chunk
        return bytes(surplus)

    async def _next(self) -> bytes:
        if self._begun:
            return await self._receive()
        self._begun = True
        start = bytearray()
        while len(start) < STATUS_LINE_LENGTH and (chunk := await self._receive()):
            start += chunk
        if is_response_head(start):
            while len(start) <= _MAX_EMBEDDED and (chunk := await self._receive()):
                start += chunk
            if len(start) <= _MAX_EMBEDDED:
                raise await self._embedded(start.decode("utf-8", "replace"))
        return bytes(start)

    async def _receive(self) -> bytes:
        try:
            chunk, _ = await self._content.readchunk()
        except (aiohttp.ClientError, OSError) as error:
            # A wrapper that hangs up rudely after the last byte is no failure if the task is none.
            self._response.close()
            await self._task.success_after(connection_error(error, None, self._what))
            return b""
        return chunk

    async def _embedded(self, text: str) -> ProtocolError:
        named = failure_in_text(text, self._task.call)
        if named is not None:
            return named
        await self._task.success_after(self._error("the server failed without saying why"))
        return self._error("the server failed without saying why")

    def _error(self, reason: str) -> TransferError:
        return TransferError(self._what, reason)
