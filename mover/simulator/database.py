"""The pool's objects: records under references, with a generation for every change.

A set of references that is the other side of a reference (`VM.VBDs` of `VBD.VM`) is kept up by the database itself.
Changes wake whoever waits in `changed`; sessions and tasks live in memory only, as on the servers.

Source: xen-api ocaml/database, the relations of ocaml/idl/datamodel.ml.
"""

from __future__ import annotations

import asyncio
import uuid as uuids
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mover.simulator.failure import Failure
from mover.simulator.fields import ClassModel, all_classes
from mover.simulator.values import NULL, Record, Value

VOLATILE = frozenset({"session", "task"})
_DELETIONS_KEPT = 20_000

# (class, reference field): the set that lists it on the other side.
_RELATIONS = {
    ("VBD", "VM"): ("VM", "VBDs"),
    ("VBD", "VDI"): ("VDI", "VBDs"),
    ("VIF", "VM"): ("VM", "VIFs"),
    ("VIF", "network"): ("network", "VIFs"),
    ("VTPM", "VM"): ("VM", "VTPMs"),
    ("VM", "snapshot_of"): ("VM", "snapshots"),
    ("VM", "parent"): ("VM", "children"),
    ("VM", "resident_on"): ("host", "resident_VMs"),
    ("VDI", "SR"): ("SR", "VDIs"),
    ("VDI", "snapshot_of"): ("VDI", "snapshots"),
    ("PBD", "SR"): ("SR", "PBDs"),
    ("PBD", "host"): ("host", "PBDs"),
    ("PIF", "host"): ("host", "PIFs"),
    ("PIF", "network"): ("network", "PIFs"),
    ("task", "subtask_of"): ("task", "subtasks"),
}


@dataclass
class Row:
    """One object. `created` and `modified` are generations."""

    fields: Record
    created: int
    modified: int


@dataclass(frozen=True)
class Deletion:
    """That an object is gone, and since when it had been there."""

    generation: int
    cls: str
    ref: str
    created: int


Derive = Callable[[Record], Mapping[str, Value]]


class Database:
    """Every object of the pool. Raises HANDLE_INVALID and UUID_INVALID as the servers do."""

    def __init__(self, generation: int = 0) -> None:
        self.models: dict[str, ClassModel] = all_classes()
        self.generation = generation
        self.blobs: dict[str, str] = {}
        self.deletions: deque[Deletion] = deque(maxlen=_DELETIONS_KEPT)
        self._tables: dict[str, dict[str, Row]] = {name: {} for name in self.models}
        self._derived: dict[str, Derive] = {}
        self._changed = asyncio.Event()
        self._on_durable_change: Callable[[], None] = lambda: None

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, cls: str, ref: str) -> Record:
        """The record itself: read it, change it through `update`."""
        return self.row(cls, ref).fields

    def row(self, cls: str, ref: str) -> Row:
        try:
            return self._tables[cls][ref]
        except KeyError:
            raise Failure("HANDLE_INVALID", cls, ref) from None

    def find(self, cls: str, ref: str) -> Record | None:
        """The record, or None where the reference is null or stale."""
        row = self._tables[cls].get(ref)
        return row.fields if row else None

    def exists(self, cls: str, ref: str) -> bool:
        return ref in self._tables[cls]

    def refs(self, cls: str) -> list[str]:
        return list(self._tables[cls])

    def items(self, cls: str) -> Iterator[tuple[str, Record]]:
        """References and records, of a moment: objects may go while the caller walks."""
        for ref, row in list(self._tables[cls].items()):
            yield ref, row.fields

    def rows(self, cls: str) -> Iterator[tuple[str, Row]]:
        yield from list(self._tables[cls].items())

    def count(self, cls: str) -> int:
        return len(self._tables[cls])

    def by_uuid(self, cls: str, uuid: str) -> str:
        for ref, row in self._tables[cls].items():
            if row.fields.get("uuid") == uuid:
                return ref
        raise Failure("UUID_INVALID", cls, uuid)

    def by_ref_or_uuid(self, cls: str, text: str) -> str:
        """What HTTP handlers accept."""
        return text if text in self._tables[cls] else self.by_uuid(cls, text)

    # -- changing ----------------------------------------------------------------------------------------------------

    def create(self, cls: str, fields: Mapping[str, Value], uuid: str | None = None, ref: str | None = None) -> str:
        """Add an object with the given fields, the rest at their defaults. Returns its reference."""
        record = self.models[cls].blank()
        record.update(fields)
        if "uuid" in record:
            record["uuid"] = uuid or record["uuid"] or str(uuids.uuid4())
        ref = ref or f"OpaqueRef:{uuids.uuid4()}"
        self.generation += 1
        self._tables[cls][ref] = Row(record, self.generation, self.generation)
        self._link(cls, ref, record, list(record))
        self._touched(cls, ref)
        return ref

    def update(self, cls: str, ref: str, **fields: Value) -> None:
        """Set fields. A change to what is already there is no event."""
        record = self.get(cls, ref)
        changed = [name for name, value in fields.items() if record[name] != value]
        if not changed:
            return
        self._unlink(cls, ref, record, changed)
        for name in changed:
            record[name] = fields[name]
        self._link(cls, ref, record, changed)
        self._touched(cls, ref)

    def touch(self, cls: str, ref: str) -> None:
        """Count the object as changed without changing it (`event.inject`)."""
        self.row(cls, ref)
        self._touched(cls, ref)

    def destroy(self, cls: str, ref: str) -> None:
        row = self.row(cls, ref)
        self._unlink(cls, ref, row.fields, list(row.fields))
        del self._tables[cls][ref]
        self.generation += 1
        self.deletions.append(Deletion(self.generation, cls, ref, row.created))
        self._wake(cls)

    def set_blob(self, uuid: str, content: str) -> None:
        """Keep what belongs to an object but is no field of it (the contents of a VTPM)."""
        self.blobs[uuid] = content
        self._on_durable_change()

    def restore(self, cls: str, ref: str, record: Record) -> None:
        """Put a complete record in its place, as it was saved."""
        self._tables[cls][ref] = Row(record, self.generation, self.generation)

    def derive(self, cls: str, rule: Derive) -> None:
        """From now on keep the fields `rule` computes from a record up to date, in every change."""
        self._derived[cls] = rule
        for ref in self.refs(cls):
            self._touched(cls, ref)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def changed(self) -> asyncio.Event:
        """An event that is set by the next change. Take it before looking, so that none is missed."""
        return self._changed

    def wake(self) -> None:
        """Wake every waiter without a change (a session ended, the toolstack restarts)."""
        self._changed.set()
        self._changed = asyncio.Event()

    def on_durable_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each change of something that outlives the process."""
        self._on_durable_change = callback

    # -- inside ------------------------------------------------------------------------------------------------------

    def _touched(self, cls: str, ref: str) -> None:
        row = self._tables[cls][ref]
        rule = self._derived.get(cls)
        if rule:
            row.fields.update(rule(row.fields))
        self.generation += 1
        row.modified = self.generation
        self._wake(cls)

    def _wake(self, cls: str) -> None:
        self.wake()
        if cls not in VOLATILE:
            self._on_durable_change()

    def _link(self, cls: str, ref: str, record: Record, names: list[str]) -> None:
        for other, other_ref, listing in self._others(cls, record, names):
            members = self._tables[other][other_ref].fields[listing]
            if ref not in members:
                self._tables[other][other_ref].fields[listing] = [*members, ref]
                self._touched(other, other_ref)

    def _unlink(self, cls: str, ref: str, record: Record, names: list[str]) -> None:
        for other, other_ref, listing in self._others(cls, record, names):
            members = self._tables[other][other_ref].fields[listing]
            if ref in members:
                self._tables[other][other_ref].fields[listing] = [member for member in members if member != ref]
                self._touched(other, other_ref)

    def _others(self, cls: str, record: Record, names: list[str]) -> Iterator[tuple[str, str, str]]:
        for name in names:
            relation = _RELATIONS.get((cls, name))
            if relation and record[name] != NULL and record[name] in self._tables[relation[0]]:
                yield relation[0], record[name], relation[1]
