"""What a key of a job file may hold: small parsers that say what is allowed, and how tables are made of them.

A parser takes a value as TOML gives it and returns the typed one, or raises `ValueError` with what is allowed
("one of full, incremental", "a size, as in \"64KiB\""). Nothing here knows of files or lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mover import units
from mover.printable import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Parse = Callable[[Any], Any]
Path = tuple[str | int, ...]
T = TypeVar("T", bound="DataclassInstance")

_REQUIRED = object()
_LOGIN = re.compile(r"//[^/]*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST = 10**40  # Python refuses to write numbers of thousands of digits.


@dataclasses.dataclass(frozen=True)
class Complaint:
    """One thing wrong: the path of the key, what was found there, what is allowed."""

    path: Path
    found: str
    allowed: str


def key(parse: Parse, default: Any = _REQUIRED, doc: str = "", example: str = "", *, private: bool = False) -> Any:
    """A field of a job structure: how its value is parsed, its default (none: required), and its documentation.

    What is found in a `private` key is not repeated in a complaint: people put secrets there by mistake.
    """
    required = default is _REQUIRED
    metadata = {"parse": parse, "doc": doc, "example": example, "required": required, "private": private}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def text(value: Any) -> str:
    """A string that is not empty and has no control characters."""
    if not isinstance(value, str) or not value.strip() or _CONTROL.search(value):
        raise ValueError("a string, not empty and without control characters")
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
    return units.parse_size(value)


def duration(value: Any) -> float:
    """Seconds, as a number or with a unit."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('a duration, as in "30s" or "7d"')
    return units.parse_duration(value)


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list):
        raise ValueError("a list of strings")
    return tuple(text(item) for item in value)


def command(value: Any) -> tuple[str, ...]:
    """A program and its arguments, each a string: no shell is involved."""
    fits = isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)
    if not fits or not value or not value[0].strip():
        raise ValueError('a command as a list, as in ["/usr/bin/pass", "xcp"]; there is no shell')
    return tuple(value)


def url(value: Any) -> str:
    """An http or https URL of a host, without a user or password in it."""
    allowed = 'a URL without user or password, as in "https://xcp-1.example.org"'
    try:
        parts = urlsplit(text(value))
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(allowed) from None
    if not whole or " " in value or "@" in parts.netloc:
        raise ValueError(allowed)
    return str(value)


def place(value: Any) -> str:
    """A folder or a URL, without a user or password in it."""
    if _LOGIN.search(text(value)):
        raise ValueError('a folder or URL without user or password, as in "file:///srv/backup/mover"')
    return str(value)


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
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls) if field.metadata}
    values: dict[str, Any] = {}
    for name, found in value.items():
        field = fields.get(name)
        if field is None:
            complaints.append(Complaint((*path, name), "an unknown key", _near(name, fields)))
            continue
        values[field.name] = _parse(field.metadata, found, (*path, name), complaints)
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


def _parse(metadata: Mapping[str, Any], value: Any, path: Path, complaints: list[Complaint]) -> Any:
    try:
        parsed = metadata["parse"](value)
    except ValueError as error:
        found = "something else" if metadata["private"] else shown(value)
        complaints.append(Complaint(path, found, str(error)))
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
        return f'"{printable(_LOGIN.sub("//***@", value)[:60])}"'
    if isinstance(value, int) and abs(value) > _LONGEST:
        return "a huge number"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value)[:60]
