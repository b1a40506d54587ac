"""mover demo"""

from __future__ import annotations

import argparse
import os
import sys
import time

from mover.cli.verify import verify
from mover.demo.story import FULL, SMALL, Folder, Story
from mover.demo.table import print_tables
from mover.errors import VerifyError
from mover.report.view import open_view
from mover.store import Store
from mover.units import format_duration


async def main(options: argparse.Namespace) -> int:
    """The main job on a simulated pool; ends with what was read, and how every restored disk compared."""
    started = time.monotonic()
    folder = Folder.at(options.dir)
    # The demo's job is not the user's: its lock must not meet one of theirs.
    os.environ["MOVER_STATE"] = str(folder.path / "state")
    try:
        with open_view(options.progress, sys.stderr) as emit:
            story = Story(folder.path, emit)
            await story.tell(SMALL if options.small else FULL)
            damages = await verify(Store.open(folder.path / "store"), None, deep=True, emit=emit)
        print_tables(story.reads, story.comparisons, sys.stdout)
    finally:
        folder.close()
    different = [comparison for comparison in story.comparisons if comparison.difference is not None]
    print(
        f"{len(story.comparisons) - len(different)} of {len(story.comparisons)} restored disks identical, "
        f"{len(damages)} damaged objects in the store, {format_duration(time.monotonic() - started)}"
    )
    return VerifyError.exit_code if different or damages else 0
