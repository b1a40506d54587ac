"""The database as one JSON file, written whole and replaced atomically a moment after a change."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from mover.simulator.database import VOLATILE, Database, Row
from mover.simulator.values import coerce, default_of, stamp

# Seconds; and of a large database, that many times the processor time that encoding and writing it took.
_DELAY = 0.02
_REST = 10


class _Encoded(NamedTuple):
    """A record as JSON, as of the generation `modified`."""

    modified: int
    record: msgspec.Raw


class Persistence:
    """Keeps `path` in step with `database`.

    Writes are gathered for 20 ms, longer in a large pool: a killed process loses at most that, and finds a whole file
    of some moment.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        self._path = path
        self._pending: asyncio.TimerHandle | None = None
        self._encoded: dict[str, _Encoded] = {}
        self._delay = _DELAY

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
            self._pending = asyncio.get_running_loop().call_later(self._delay, self.write)

    def write(self) -> None:
        started = time.thread_time()
        self._pending = None
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(self.dump())
        os.replace(temporary, self._path)
        self._delay = max(_DELAY, _REST * (time.thread_time() - started))

    def dump(self) -> bytes:
        """The lasting part of the database as JSON. Records are encoded once for each state they are in."""
        before, self._encoded = self._encoded, {}
        tables: dict[str, dict[str, msgspec.Raw]] = {}
        for cls in self._database.models:
            if cls not in VOLATILE:
                tables[cls] = {ref: self._encode(ref, row, before) for ref, row in self._database.rows(cls)}
        content = {"generation": self._database.generation, "tables": tables, "blobs": self._database.blobs}
        return msgspec.json.encode(content)

    def _encode(self, ref: str, row: Row, before: Mapping[str, _Encoded]) -> msgspec.Raw:
        known = before.get(ref)
        if known is None or known.modified != row.modified:
            fields = {
                name: stamp(value) if isinstance(value, datetime) else value for name, value in row.fields.items()
            }
            known = _Encoded(row.modified, msgspec.Raw(msgspec.json.encode(fields)))
        self._encoded[ref] = known
        return known.record


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
