"""The task of one HTTP transfer: made before it, watched during it, asked for the verdict, destroyed after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from protocol.errors import ProtocolError, TransferError
from protocol.xapi.records import TaskRecord
from protocol.xapi.session import Pool, result_of
from protocol.xapi.tasks import Watch

# Seconds: for the task to end after the last byte (the host detaches the disk in between), to say why a connection
# broke, and to notice that we hung up.
_VERDICT = 900.0
_REASON = 30.0
_SETTLE = 10.0


class OwnTask:
    """A task of ours while an HTTP handler works on it. `call` names the handler in errors.

    Whoever sees the handler accept the request notes that it `adopted` the task, and so will end it.
    """

    def __init__(self, pool: Pool, ref: str, watch: Watch, call: str, what: str) -> None:
        self.ref = ref
        self.call = call
        self.adopted = False
        self._pool = pool
        self._watch = watch
        self._what = what

    def on_failure(self, tell: Callable[[Exception], None]) -> None:
        """Call `tell` with the error as soon as the task is seen to fail."""

        def ended(future: asyncio.Future[TaskRecord | None]) -> None:
            record = None if future.cancelled() else future.result()
            if record is not None and record.status != "success":
                try:
                    result_of(record, self.call)
                except ProtocolError as error:
                    tell(error)

        self._watch.ended.add_done_callback(ended)

    async def success(self) -> object:
        """Wait for the end and return the task's result. Raises XapiError, OutcomeUnknownError, TransferError."""
        return await self._result(_VERDICT, TransferError(self._what, "the server never said how it ended"))

    async def success_after(self, error: ProtocolError) -> object:
        """The connection broke with `error`: return the result if all went well, raise why it did not, or `error`."""
        return await self._result(_REASON, error)

    async def settle(self) -> None:
        """Give the server a moment to notice that we hung up, so that it lets go of the disk."""
        with suppress(ProtocolError):
            await self._result(_SETTLE, TransferError(self._what, "abandoned"))

    async def _result(self, patience: float, otherwise: ProtocolError) -> object:
        try:
            async with asyncio.timeout(patience):
                record = await self._pool.end_of(self.ref, self._watch, self.call)
        except TimeoutError:
            raise otherwise from None
        return result_of(record, self.call)


@asynccontextmanager
async def own_task(pool: Pool, call: str, what: str) -> AsyncIterator[OwnTask]:
    """Hold a task for the handler `call`. It is destroyed at the end, even one that the handler never adopted."""
    ref = await pool.create_task(f"mover: {what}")
    task = OwnTask(pool, ref, pool.watch(ref), call, what)
    try:
        yield task
    finally:
        pool.unwatch(ref)
        await pool.destroy_task(ref, adopted=task.adopted)
