"""docs/promises.md names only tests and files that exist, and every line of its tables names one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/promises.md").read_text()


def named(text: str) -> set[tuple[str, str]]:
    """Files, and the test named in each, if any."""
    return {(file, test) for file, test in re.findall(r"`((?:tests|bench)/[\w/]+\.py)(?:::(\w+))?`", text)}


def missing(names: set[tuple[str, str]]) -> list[str]:
    """Those that do not exist."""
    found = []
    for file, test in sorted(names):
        source = (ROOT / file).read_text() if (ROOT / file).is_file() else None
        if source is None or (test and not re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE)):
            found.append(f"{file}::{test}")
    return found


def without_proof(text: str) -> Iterator[str]:
    """The lines of tables that name nothing that shows them."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| promise |") and not named(line):
            yield line


def test_everything_that_is_named_exists() -> None:
    assert len(named(PAGE)) > 60
    assert missing(named(PAGE)) == []


def test_every_promise_names_what_shows_it() -> None:
    assert list(without_proof(PAGE)) == []


def test_what_is_wrong_is_noticed() -> None:
    assert missing(named("`tests/unit/test_promises.py::test_nobody_wrote`, `tests/unit/test_gone.py`"))
    assert list(without_proof("| a promise | trust us |\n| another | `bench/store_index.py` |")) == [
        "| a promise | trust us |"
    ]
