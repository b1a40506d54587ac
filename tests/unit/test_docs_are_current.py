"""The pages made from the code say what the code says, and the example job loads."""

import dataclasses
from pathlib import Path

import pytest

from mover.job import load_job
from mover.job.model import Job
from tests.tools.make_docs import DOCS, pages


@pytest.mark.parametrize("path", sorted(pages()), ids=lambda path: path.name)
def test_made_page_is_current(path: Path):
    assert path.read_text() == pages()[path], "run: python tests/tools/make_docs.py"


def test_the_example_job_uses_every_section():
    job = load_job(DOCS / "job.example.toml")
    assert job.name == "nightly-prod"
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    untouched = [name for name, default in defaults.items() if getattr(job, name) == default]
    assert untouched == []
