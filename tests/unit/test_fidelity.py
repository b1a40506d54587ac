"""docs/fidelity.md names only tests and files that exist, and every line of its tables gives a verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/fidelity.md").read_text()


def named_tests(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+|Test\w+)`", text))


def existing_tests() -> set[str]:
    source = "".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*.py"))
    functions = re.findall(r"^\s*(?:async )?def (test_\w+)\(", source, re.MULTILINE)
    return {*functions, *re.findall(r"^(?:class )?(Test\w+)\b", source, re.MULTILINE)}


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| Behaviour"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def wrong(row: list[str]) -> bool:
    """Whether a line lacks a verdict, or a test for what it says is there."""
    if len(row) != 4:
        return True
    verdict = re.match(r"(yes|partly|no)\b", row[2])
    return verdict is None or (verdict[1] == "yes" and not named_tests(row[3]))


def test_every_test_that_is_named_exists() -> None:
    assert len(named_tests(PAGE)) > 80
    assert named_tests(PAGE) - existing_tests() == set()


def test_every_file_that_is_named_exists() -> None:
    places = (ROOT, ROOT / "mover/simulator")
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert [name for name in sorted(named) if not any((place / name).is_file() for place in places)] == []


def test_every_line_of_a_table_says_whether() -> None:
    assert len(list(rows(PAGE))) > 80
    assert [row[0] for row in rows(PAGE) if wrong(row)] == []


def test_what_is_wrong_is_noticed() -> None:
    assert named_tests("`test_that_nobody_wrote`") - existing_tests() == {"test_that_nobody_wrote"}
    lines = ["| a | b | yes | |", "| a | b | maybe | `test_x` |", "| a | b | yes, so | `test_x` |", "| a | b | no | |"]
    assert [wrong(row) for row in rows("\n".join(lines))] == [True, True, False, False]
