"""Real files of this machine, for the file systems of guests: demonstrations are more honest with them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from mover.simulator.guest import GuestError

_BLOCK = 4096


class FileTree(NamedTuple):
    """A folder. `size` is the bytes of the files in it, each in whole blocks of 4 KiB; `entries` counts everything."""

    path: Path
    size: int
    entries: int


def find_tree(least: int, root: Path = Path("/usr")) -> FileTree:
    """The smallest folder below `root`, or `root`, with at least `least` bytes of files, all of them readable.

    A file system for it needs an eighth more, and 16 KiB per entry if that is more. Raises GuestError if there is none.
    """
    found: list[FileTree] = []
    _measure(root, least, found)
    if not found:
        raise GuestError(f"no folder under {root} has {least} bytes of files that can be read")
    return min(found, key=lambda tree: (tree.size, tree.path))


def _measure(folder: Path, least: int, found: list[FileTree]) -> FileTree | None:
    """Measure a folder, and collect what is large enough in it. None if part of it cannot be read."""
    size, entries, readable = 0, 0, True
    try:
        with os.scandir(folder) as scan:
            children = sorted(scan, key=lambda child: child.name)
    except OSError:
        return None
    for child in children:
        entries += 1
        if child.is_dir(follow_symlinks=False):
            below = _measure(Path(child.path), least, found)
            readable = readable and below is not None
            size += _BLOCK + (below.size if below else 0)
            entries += below.entries if below else 0
            continue
        held = _held(child)
        readable = readable and held is not None
        size += held or 0
    if not readable:
        return None
    tree = FileTree(folder, size, entries)
    if size >= least:
        found.append(tree)
    return tree


def _held(child: os.DirEntry[str]) -> int | None:
    """The bytes of a file in whole blocks; None if it cannot be read."""
    try:
        status = child.stat(follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return 0
    return -(-status.st_size // _BLOCK) * _BLOCK if os.access(child.path, os.R_OK) else None
