"""The store of a job: is it there, can it be written, is there room?"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mover.check.finding import Finding, failed
from mover.check.local import existing
from mover.errors import MoverError, SecretError, StoreMissingError
from mover.job import Job
from mover.storage import open_store as open_store_of
from mover.store import Store
from mover.units import GiB, format_size

# With less than this, index and points of the next run may find no room.
_TIGHT = GiB
# Seconds. A run waits longer for a server that is away; who asks wants to know now.
_PATIENCE = 10.0


def open_store(job: Job) -> tuple[Store | None, list[Finding]]:
    """The job's store, if there is one that can be opened, and what was seen."""
    try:
        store = open_store_of(replace(job.store, retry_for=min(job.store.retry_for, _PATIENCE)))
        points, damaged = store.readable_points()
    except StoreMissingError:
        return None, [Finding(level="info", check="store", what=f"{job.store.url}: the first run makes a new store")]
    except SecretError:
        return None, []  # Told of already, as one of the job's secrets.
    except MoverError as error:
        return None, [failed("store", error)]
    findings = [Finding(level="ok", check="store", what=f"{store.location}: {len(points)} restore points")]
    findings += [
        Finding(
            level="warning",
            check="store",
            what=f"the restore point {damage.object} is damaged: {damage.reason}",
            fix="mover verify says what is lost",
        )
        for damage in damaged
    ]
    return store, findings


def check_room(job: Job, to_read: int) -> Iterator[Finding]:
    """Whether a store in a folder has room for a run that reads `to_read` bytes. Other places do not tell."""
    folder = folder_of(job.store.url)
    if folder is None:
        return
    there = existing(folder)
    try:
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding(level="error", check="store", what=f"{there}: {error.strerror}")
        return
    if not writable:
        yield Finding(
            level="error",
            check="store",
            what=f"{there} is no folder that this user can write to, or is mounted read-only",
            fix=f"chown {os.getuid()} {there}, or mount it read-write",
        )
    elif free < max(to_read, _TIGHT):
        yield Finding(
            level="error" if free < _TIGHT and to_read else "warning",
            check="space",
            what=f"{there} has {format_size(free)} free; the next run reads up to {format_size(to_read)}, before "
            "deduplication and compression",
            fix=f"mover prune {job.name}.toml gives back what [retention] let go",
        )
    else:
        needed = f" for a run that reads up to {format_size(to_read)}" if to_read else ""
        yield Finding(level="ok", check="space", what=f"{there} has {format_size(free)} free{needed}")


def folder_of(url: str) -> Path | None:
    """The folder of a store in a folder; None for other kinds."""
    if not re.match(r"[a-z][a-z0-9+.-]*://", url):
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
