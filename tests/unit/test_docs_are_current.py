"""The pages made from the code say what the code says, and the example job loads."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest

from mover.errors import MoverError
from mover.events import DiskProgress, Note, RunFinished
from mover.job import load_job
from mover.job.model import Job
from mover.report.jsonl import JsonLines
from tests.tools.make_docs import DOCS, pages


@pytest.mark.parametrize("path", sorted(pages()), ids=lambda path: path.name)
def test_made_page_is_current(path: Path):
    assert path.read_text() == pages()[path], "run: python -m tests.tools.make_docs"


def test_the_example_job_uses_every_section():
    job = load_job(DOCS / "job.example.toml")
    assert job.name == "nightly-prod"
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    untouched = [name for name, default in defaults.items() if getattr(job, name) == default]
    assert untouched == []


def test_job_page_has_every_key():
    page = (DOCS / "job.md").read_text()
    sections = dict(re.findall(r"^## \[+(\w+)\]+\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    for line in (DOCS / "job.example.toml").read_text().splitlines():
        if header := re.match(r"\[+(\w+)\]+", line):
            section = sections[header[1]]
        elif (key := re.match(r"([\w-]+) =", line)) and key[1] != "name":
            known = section + sections["backup"] if header_of(line) else section
            assert f"| `{key[1]}` |" in known, line


def header_of(line: str) -> bool:
    """Keys of [backup] may stand in [[vms]] too."""
    return line.startswith(("strategy", "mode", "full-read", "increments", "compression", "quiesce", "keep-snapshot"))


def test_exit_page_has_the_codes_that_scripts_rely_on():
    page = (DOCS / "exit-codes.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert {0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 20, 21, 22, 30, 75, 130, 143} <= listed
    again = {int(code) for code in re.findall(r"^\| (\d+) \|.*\| yes \|$", page, re.M)}
    assert again == {11, 20, 26, 27, 75, 143}
    once = {int(code) for code in re.findall(r"^\| (\d+) \|.*\| no \|$", page, re.M)}
    assert not once & again, "a code that says both would be of no use to a script"
    assert MoverError("").exit_code == 1


@pytest.mark.parametrize(
    "event",
    [
        DiskProgress(vm="u", disk="0", done=1, read=2, zero=3, known=4, new=5, stored=6),
        Note(level="warning", message="m"),
        RunFinished(run="r", outcome="partial", exit_code=3, seconds=1.5, read=1, stored=2),
    ],
    ids=lambda event: event.__struct_config__.tag,
)
def test_a_line_is_what_the_events_page_says(event: DiskProgress | Note | RunFinished):
    """The page is read as a stranger would: a table of common fields, and one per type."""
    page = (DOCS / "events.md").read_text()
    stream = io.StringIO()
    JsonLines(stream, clock=lambda: 1.25)(event)
    line = json.loads(stream.getvalue())
    common, own = page.split("## ", 1)[0], page.split(f"## {line['type']}\n", 1)[1].split("\n## ", 1)[0]
    described = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", common + own, re.M))
    assert set(line) == set(described)
    for field, value in line.items():
        assert kind_of(value) in described[field].split(" or ") or f'`"{value}"`' in described[field], field


def kind_of(value: object) -> str:
    if value is None:
        return "null"
    return "number" if isinstance(value, int | float) else "string" if isinstance(value, str) else "array of strings"
