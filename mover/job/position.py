"""Where in a TOML text a key stands. tomllib keeps no positions, and a message without one makes people search."""

from __future__ import annotations

import re

Path = tuple[str | int, ...]
Position = tuple[int, int]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")


def positions(text: str) -> dict[Path, Position]:
    """Map the path of every table and key in `text` (valid TOML) to its line and column, both from 1.

    Members of arrays of tables have their index in the path, as in `("vms", 1, "name")`.
    """
    found: dict[Path, Position] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    value = _Value()
    for number, line in enumerate(text.split("\n"), 1):
        if value.open:
            value.feed(line)
            continue
        if header := _HEADER.match(line):
            table = _resolve(_parts(header[2]), counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, (number, header.start(2) + 1))
                table = (*table, counts[table])
            found[table] = (number, header.start(2) + 1)
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
            found[path] = (number, key.start(1) + 1)
            value.feed(line[key.end() :])
    return found


def nearest(found: dict[Path, Position], path: Path) -> Position:
    """The position of `path`, or of the closest table around it; line 1 if there is none."""
    for length in range(len(path), 0, -1):
        if path[:length] in found:
            return found[path[:length]]
    return (1, 1)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _resolve(parts: tuple[str, ...], counts: dict[Path, int]) -> Path:
    """A header's path with the current index after each array of tables on the way."""
    path: Path = ()
    for part in parts[:-1]:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    return (*path, parts[-1])


class _Value:
    """Follows a value over lines: is a bracket or a long string still open?"""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""

    @property
    def open(self) -> bool:
        return self._depth > 0 or len(self._quote) == 3

    def feed(self, line: str) -> None:
        at = 0
        while at < len(line):
            if self._quote:
                at = self._inside(line, at)
            elif line[at] == "#":
                break
            elif line[at] in "\"'":
                self._quote = line[at] * 3 if line.startswith(line[at] * 3, at) else line[at]
                at += len(self._quote)
            else:
                self._depth += (line[at] in "[{") - (line[at] in "]}")
                at += 1
        if len(self._quote) == 1:
            self._quote = ""

    def _inside(self, line: str, at: int) -> int:
        if line[at] == "\\" and self._quote[0] == '"':
            return at + 2
        if line.startswith(self._quote, at):
            at += len(self._quote)
            self._quote = ""
            return at
        return at + 1
