"""README names commands, options and pages that there are, and its job is one."""

import re
import shlex
from pathlib import Path

from mover.cli.parser import parse
from mover.job import parse_job

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_every_command_is_taken_by_the_parser():
    commands = re.findall(r"^\$ mover (.*)$", README, re.MULTILINE)
    assert len(commands) > 8
    for command in commands:
        assert parse(shlex.split(command, comments=True)).verb


def test_the_job_loads():
    (text,) = re.findall(r"^```toml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    job = parse_job(text.replace("<what openssl printed>", "ab" * 32), "nightly.toml", "nightly")
    assert (job.name, len(job.vms), job.retention.keep_daily) == ("nightly", 2, 14)


def test_every_page_is_there():
    pages = re.findall(r"\]\((docs/[^)#]+)", README)
    assert len(pages) > 8
    assert not [page for page in pages if not (ROOT / page).exists()]
    texts = [README, *(page.read_text() for page in (ROOT / "docs").glob("*.md"))]
    linked = {name for text in texts for name in re.findall(r"\]\((?:docs/)?([\w-]+\.md)", text)}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked, "a page that nobody finds"
