"""The man page and the shells' completion, made from the command line's own parser.

Made with the oldest Python that the project supports: argparse words its usage differently from version to version.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import shtab
from argparse_manpage.manpage import Manpage

from mover import __version__
from mover.cli.parser import build_parser

OLDEST = (3, 11)
SHELLS = {"bash": "mover.bash", "zsh": "_mover", "tcsh": "mover.csh"}
_FILES = {"JOB.toml", "STORE|JOB", "FILE", "PATH"}
_FOLDERS = {"DIR", "D"}
_DESCRIPTION = "agentless backup and restore of XCP-ng / XenServer virtual machines"
_FILES_SECTION = """\
.TP
.I JOB.toml
The job: what to back up, from where, to where. Every key is described in docs/job.md of the source.
.TP
.I $MOVER_STATE, $XDG_STATE_HOME/mover, ~/.local/state/mover
The first of these that is set: locks, so that a job runs once at a time."""
_EXIT_SECTION = """\
0 if all is well, 2 for a wrong command line or job, 3 if some VMs failed, 75 if another run of the job is active.
All others are in docs/exit-codes.md of the source. A code that is not there means failure."""


def man_page() -> str:
    """docs/mover.1, in troff."""
    with _wide():
        data = {
            "date": "",
            "project_name": "mover",
            "version": __version__,
            "manual_title": "User Commands",
            "description": _DESCRIPTION,
        }
        page = Manpage(build_parser(), _data=data, format="single-commands-section")
        page.add_section("files", ">", _FILES_SECTION)
        page.add_section("exit status", ">", _EXIT_SECTION)
        page.date = ""  # of the day on which it was made; the version says more
        text = str(page).replace("\n.SH\nPOSITIONAL ARGUMENTS\n", "\n.SH COMMANDS\n")
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join("".join(_troff(char) for char in line) for line in lines) + "\n"


def _troff(char: str) -> str:
    return char if char.isascii() else f"\\[u{ord(char):04X}]"


def completion(shell: str) -> str:
    """What completes `mover` in a shell; file names where files are wanted."""
    with _wide():
        parser = build_parser()
        for action in _actions(parser):
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        text: str = shtab.complete(parser, shell=shell)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def can_make() -> bool:
    """Whether this Python words things as the pages do."""
    return sys.version_info[:2] == OLDEST


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


@contextmanager
def _wide() -> Iterator[None]:
    """The same line breaks on every terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
