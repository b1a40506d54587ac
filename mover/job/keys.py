"""What a key of a job file may hold: small parsers that say what is allowed, and how tables are made of them.

A parser takes a value as TOML gives it and returns the typed one, or raises `ValueError` with what is allowed
("one of full, incremental", "a size, as in \"64KiB\""). Nothing here knows of files or lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mover import units

Parse = Callable[[Any], Any]
Path = tuple[str | int, ...]
T = TypeVar("T")

_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Complaint:
    """One thing wrong: the path of the key, what was found there, what is allowed."""

    path: Path
    found: str
    allowed: str


def key(parse: Parse, default: Any = _REQUIRED, doc: str = "", example: str = "") -> Any:
    """A field of a job structure: how its value is parsed, its default (none: required), and its documentation."""
    metadata = {"parse": parse, "doc": doc, "example": example, "required": default is _REQUIRED}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def text(value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a string")
    return value


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def count(low: int, high: int) -> Parse:
    """A whole number from `low` to `high`."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def choice(*allowed: str) -> Parse:
    """One of some words."""

    def parse(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return parse


def size(value: Any) -> int:
    """Bytes, as a number or with a unit."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('a size, as in "64KiB" or 65536')
    parsed = units.parse_size(value)
    if parsed < 0:
        raise ValueError("a size of zero or more bytes")
    return parsed


def duration(value: Any) -> float:
    """Seconds, as a number or with a unit."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('a duration, as in "30s" or "7d"')
    parsed = units.parse_duration(value)
    if parsed < 0:
        raise ValueError("a duration of zero or more seconds")
    return parsed


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError("a list of strings")
    return tuple(value)


def command(value: Any) -> tuple[str, ...]:
    """A program and its arguments, each a string: no shell is involved."""
    parsed = texts(value)
    if not parsed:
        raise ValueError('a command as a list, as in ["/usr/bin/pass", "xcp"]')
    return parsed


def pattern(expression: str, allowed: str) -> Parse:
    """A string that matches a regular expression."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(expression, value):
            raise ValueError(allowed)
        return value

    return parse


def table(cls: type[T], value: Any, path: Path, complaints: list[Complaint]) -> T | None:
    """Make a `cls` of a TOML table; adds to `complaints` and returns None where that is not possible."""
    before = len(complaints)
    if not isinstance(value, dict):
        complaints.append(Complaint(path, shown(value), "a table"))
        return None
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls) if field.metadata}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, found in value.items():
        field = fields.get(name)
        if field is None:
            complaints.append(Complaint((*path, name), "an unknown key", _near(name, fields)))
            continue
        values[field.name] = _parse(field.metadata["parse"], found, (*path, name), complaints)
    for name, field in fields.items():
        if field.metadata["required"] and name not in value:
            complaints.append(Complaint((*path, name), "nothing", "this key is required"))
    return None if len(complaints) > before else cls(**values)


def one(cls: type[Any]) -> Parse:
    """A nested table."""
    return lambda value: _Nested(cls, value, many=False)


def many(cls: type[Any]) -> Parse:
    """An array of tables."""
    return lambda value: _Nested(cls, value, many=True)


@dataclasses.dataclass(frozen=True)
class _Nested:
    cls: type[Any]
    value: Any
    many: bool


def _parse(parse: Parse, value: Any, path: Path, complaints: list[Complaint]) -> Any:
    try:
        parsed = parse(value)
    except ValueError as error:
        complaints.append(Complaint(path, shown(value), str(error)))
        return None
    if not isinstance(parsed, _Nested):
        return parsed
    if not parsed.many:
        return table(parsed.cls, value, path, complaints)
    if not isinstance(value, list):
        complaints.append(Complaint(path, shown(value), f"an array of tables: [[{path[-1]}]]"))
        return ()
    return tuple(table(parsed.cls, item, (*path, index), complaints) for index, item in enumerate(value))


def _near(name: str, allowed: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, allowed, 1)
    known = ", ".join(allowed)
    return f"did you mean {close[0]}? (allowed: {known})" if close else f"one of {known}"


def shown(value: Any) -> str:
    """A value as a message shows it: short, and in TOML's notation where that is simple."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value[:60]}"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value)[:60]
