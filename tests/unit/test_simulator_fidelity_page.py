"""That docs/fidelity.md names only tests and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fidelity.md").read_text()


def test_every_test_it_names_exists() -> None:
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)|^(Test\w+) =", source, re.MULTILINE))
    known = {name for pair in defined for name in pair if name}
    named = set(re.findall(r"`(test_\w+|Test\w+)`", PAGE))
    assert len(named) > 80
    assert named - known == set()


def test_every_file_it_names_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    missing = [
        name for name in named if not any((place / name).is_file() for place in (ROOT, ROOT / "mover/simulator"))
    ]
    assert missing == []


def test_every_line_of_a_table_says_whether() -> None:
    lines = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "Behaviour" not in line]
    assert [line for line in lines if len(line) != 6] == []
    assert [line[1] for line in lines if not re.match(r" (yes|partly|no)\b", line[3])] == []
    # What is claimed to be there is tested, but for a remark here and there.
    assert [line[1] for line in lines if line[3].startswith(" yes") and not line[4].strip()] == []
