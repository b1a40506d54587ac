"""The database as one JSON file, written whole and replaced atomically a moment after a change."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime
from pathlib import Path

from mover.simulator.database import VOLATILE, Database
from mover.simulator.values import Value, coerce, default_of, stamp

_DELAY = 0.02


class Persistence:
    """Keeps `path` in step with `database`.

    Writes are gathered for 20 ms: a killed process loses at most that, and finds a whole file of some moment.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        self._path = path
        self._pending: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._database.on_durable_change(self._schedule)

    def stop(self) -> None:
        """Write what is pending and write no more."""
        self._database.on_durable_change(lambda: None)
        if self._pending:
            self._pending.cancel()
        self.write()

    def _schedule(self) -> None:
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_DELAY, self.write)

    def write(self) -> None:
        self._pending = None
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(dump(self._database))
        os.replace(temporary, self._path)


def dump(database: Database) -> str:
    """The lasting part of the database as JSON."""
    tables = {
        cls: {ref: {name: _out(value) for name, value in row.fields.items()} for ref, row in database.rows(cls)}
        for cls in database.models
        if cls not in VOLATILE
    }
    return json.dumps({"generation": database.generation, "tables": tables, "blobs": database.blobs}, indent=1)


def load(path: Path) -> Database:
    """Read a file `dump` wrote; fields it does not know take their defaults. What was going on then is no more."""
    content = json.loads(path.read_text())
    database = Database(generation=content["generation"] + 1)
    database.blobs.update(content["blobs"])
    for cls, rows in content["tables"].items():
        model = database.models[cls]
        for ref, stored in rows.items():
            record = {
                name: coerce(field.type, stored[name]) if name in stored else default_of(field.type)
                for name, field in model.fields.items()
            }
            if "current_operations" in record:
                record["current_operations"] = {}
            database.restore(cls, ref, record)
    return database


def _out(value: Value) -> Value:
    return stamp(value) if isinstance(value, datetime) else value
