"""The command line: the only place that prints, and that knows exit codes. Verbs are imported when they are run."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/exit-codes.md)."""
    from mover.cli.parser import parse

    options = parse(sys.argv[1:] if arguments is None else arguments)
    from mover.cli.runner import run

    return run(options)
