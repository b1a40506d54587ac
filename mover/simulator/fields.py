"""What each class of objects is made of, read from the tables of the `fields_…` modules.

A line of a table is `qualifier name type [= default]`. Qualifiers: `rw` clients may set the field; `con` only the
constructor takes it; `ro` the server keeps it. A `!` marks what the constructor cannot do without.
"""

from __future__ import annotations

from dataclasses import dataclass

from mover.simulator import fields_compute, fields_pool, fields_storage
from mover.simulator.values import Record, Type, Value, default_of, parse_type

_QUALIFIERS = {"rw": "RW", "con": "RO/constructor", "ro": "RO/runtime"}


@dataclass(frozen=True)
class Field:
    """One field. `mandatory` is about the constructor."""

    name: str
    qualifier: str
    type: Type
    mandatory: bool
    default: Value

    @property
    def settable(self) -> bool:
        return self.qualifier == "RW"


@dataclass(frozen=True)
class ClassModel:
    """A class: its fields, and which of the generic messages it has."""

    name: str
    fields: dict[str, Field]
    listed: bool = True
    recorded: bool = True

    @property
    def named(self) -> bool:
        """Whether `get_by_name_label` exists: not for every class that has the field."""
        return "name_label" in self.fields and self.name != "pool"

    def blank(self) -> Record:
        """A record of defaults, every value its own."""
        return {name: _fresh(field.default) for name, field in self.fields.items()}


def _fresh(value: Value) -> Value:
    return value.copy() if isinstance(value, list | dict) else value


def parse_class(name: str, table: str, listed: bool = True, recorded: bool = True) -> ClassModel:
    """Read one table."""
    fields = [_parse_field(line) for line in table.strip().splitlines()]
    return ClassModel(name, {field.name: field for field in fields}, listed, recorded)


def _parse_field(line: str) -> Field:
    declaration, _, default = line.partition(" = ")
    qualifier, name, type_text = declaration.split(None, 2)
    kind = parse_type(type_text)
    value = _parse_default(kind, default.strip()) if default else default_of(kind)
    return Field(name, _QUALIFIERS[qualifier.rstrip("!")], kind, qualifier.endswith("!"), value)


def _parse_default(kind: Type, text: str) -> Value:
    if kind.kind == "bool":
        return text == "true"
    if kind.kind == "int":
        return int(text)
    return float(text) if kind.kind == "float" else text


def all_classes() -> dict[str, ClassModel]:
    """Every class of the simulated pool, by name. Events are never objects; messages have records but no getters."""
    compute, storage, pool = fields_compute, fields_storage, fields_pool
    models = [
        parse_class("VM", compute.VM),
        parse_class("VM_guest_metrics", compute.VM_GUEST_METRICS),
        parse_class("VBD", compute.VBD),
        parse_class("VIF", compute.VIF),
        parse_class("VTPM", compute.VTPM),
        parse_class("SM", storage.SM),
        parse_class("SR", storage.SR),
        parse_class("PBD", storage.PBD),
        parse_class("VDI", storage.VDI),
        parse_class("session", pool.SESSION, listed=False),
        parse_class("task", pool.TASK),
        parse_class("event", pool.EVENT, listed=False, recorded=False),
        parse_class("message", pool.MESSAGE),
        parse_class("pool", pool.POOL),
        parse_class("host", pool.HOST),
        parse_class("network", pool.NETWORK),
        parse_class("PIF", pool.PIF),
    ]
    return {model.name: model for model in models}
