"""Objects that are busy: one operation at a time, seen in `current_operations`; who comes second waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from mover.simulator.context import Context
from mover.simulator.database import Database


class Busy:
    """Holds objects for operations. `durations` says how many seconds a method is to take."""

    def __init__(self, database: Database, durations: Mapping[str, float]) -> None:
        self._database = database
        self._durations = durations

    @asynccontextmanager
    async def hold(self, context: Context, cls: str, ref: str, operation: str) -> AsyncIterator[None]:
        """Wait until nothing else works on the object, then show `operation` on it while the body runs.

        The servers retry internally in this case (helpers.ml, `retry_until_timeout`), so a call may look hung.
        """
        while True:
            changed = self._database.changed()
            if not self._database.get(cls, ref)["current_operations"]:
                break
            await changed.wait()
        key = context.task or f"OpaqueRef:{uuid.uuid4()}"
        self._database.update(cls, ref, current_operations={key: operation})
        try:
            await asyncio.sleep(self._durations.get(context.method, 0.0))
            yield
        finally:
            record = self._database.find(cls, ref)
            if record is not None:
                rest = {k: v for k, v in record["current_operations"].items() if k != key}
                self._database.update(cls, ref, current_operations=rest)
