"""Types of the data model, and values checked against them.

Inside the simulator a value is a plain Python one: int, float, bool, str (also enums and references), datetime (UTC),
list (sets) or dict (maps, records). On the way in everything is checked against the declared type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Value = Any
Record = dict[str, Value]

NULL = "OpaqueRef:NULL"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STAMPS = ("%Y%m%dT%H:%M:%SZ", "%Y%m%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ")


class BadValueError(ValueError):
    """A value that is not of its declared type."""


@dataclass(frozen=True)
class Type:
    """`kind` is int, float, bool, string, datetime, ref, enum, set, map, record or void.

    `of` names the class of a reference or record, or the enum; `key` and `item` are the types inside a set or map.
    """

    kind: str
    of: str = ""
    item: Type | None = None
    key: Type | None = None

    def __str__(self) -> str:
        if self.kind == "set":
            return f"{self.item} set"
        if self.kind == "map":
            return f"({self.key} -> {self.item}) map"
        if self.kind == "enum":
            return f"enum {self.of}"
        return f"{self.of} {self.kind}" if self.of else self.kind


def parse_type(text: str) -> Type:
    """Read a type as the data model writes it: `(VM ref -> string) map`, `enum vdi_type set`, `VDI record`."""
    text = text.strip()
    if text.endswith(" set"):
        return Type("set", item=parse_type(text[:-4]))
    if text.endswith(" map"):
        key, _, item = text[:-4].strip()[1:-1].partition("->")
        return Type("map", item=parse_type(item), key=parse_type(key))
    if text.startswith("enum "):
        return Type("enum", text[5:])
    for kind in ("ref", "record"):
        if text.endswith(f" {kind}"):
            return Type(kind, text[: -len(kind) - 1])
    return Type(text)


def default_of(kind: Type) -> Value:
    """What a field holds when nobody said otherwise."""
    if kind.kind == "set":
        return []
    if kind.kind in ("map", "record"):
        return {}
    plain: dict[str, Value] = {"int": 0, "float": 0.0, "bool": False, "ref": NULL, "datetime": EPOCH}
    return plain.get(kind.kind, "")


def stamp(moment: datetime) -> str:
    """A date as XAPI writes it."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H:%M:%SZ")


def now() -> datetime:
    """The time, in whole seconds as records hold it."""
    return datetime.now(UTC).replace(microsecond=0)


def parse_stamp(text: str) -> datetime:
    """Read a date as clients write it."""
    for form in _STAMPS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise BadValueError(f"not a date: {text!r}")


def coerce(kind: Type, value: Value) -> Value:
    """Check `value`, as a wire decoder gave it, against `kind`. Raises BadValueError.

    XML-RPC carries integers as text. A float has to come as one: some releases take no integer for it.
    """
    if kind.kind == "set":
        if not isinstance(value, list | tuple):
            raise BadValueError(f"not a {kind}: {value!r}")
        return [coerce(_inner(kind.item), item) for item in value]
    if kind.kind in ("map", "record"):
        if not isinstance(value, Mapping):
            raise BadValueError(f"not a {kind}: {value!r}")
        if kind.kind == "record":
            return dict(value)
        key, item = _inner(kind.key), _inner(kind.item)
        return {str(coerce(key, k)): coerce(item, v) for k, v in value.items()}
    return _scalar(kind, value)


def _inner(kind: Type | None) -> Type:
    return kind if kind is not None else Type("string")


def _scalar(kind: Type, value: Value) -> Value:
    if kind.kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind.kind == "int":
        if isinstance(value, str | int) and not isinstance(value, bool):
            return _integer(value)
    elif kind.kind == "float":
        if isinstance(value, float) and math.isfinite(value):
            return value
    elif kind.kind == "datetime":
        if isinstance(value, datetime):
            return value
        return parse_stamp(str(value))
    elif isinstance(value, str):
        return value
    raise BadValueError(f"not a {kind}: {value!r}")


def _integer(value: str | int) -> int:
    try:
        number = int(value)
    except ValueError:
        raise BadValueError(f"not an int: {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise BadValueError("an int has 64 bits")
    return number
