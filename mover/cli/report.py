"""mover report"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from mover.cli.opening import store_of
from mover.cli.runner import say, show
from mover.errors import NotFoundError, StoreDamagedError, TargetError
from mover.report.html import page


async def main(options: argparse.Namespace) -> int:
    """Write a page about a store's restore points."""
    store = store_of(options.store, options)
    points, damaged = store.readable_points()
    if options.vm:
        points = [point for point in points if options.vm in (point.record.vm_uuid, point.record.vm_name)]
        if not points:
            raise NotFoundError(
                f"{store.location} has no point of a VM {options.vm}", "`mover list` shows what there is"
            )
    write_whole(Path(options.html), page(points, store.location, time.time()))
    for damage in damaged:
        say(f"damaged: {damage.object}: {damage.reason}")
    show(options.html)
    return StoreDamagedError.exit_code if damaged else 0


def write_whole(path: Path, text: str) -> None:
    """Replace `path` in one step: whoever looks at it sees the old page or the new one. Raises `TargetError`."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise TargetError(f"cannot write {path}: {error.strerror}") from error
