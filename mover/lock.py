"""One run of a job at a time on one machine."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mover.errors import BusyError, StateError


def state_directory() -> Path:
    """Where this program keeps small state of its own: `$MOVER_STATE`, else the user's state folder."""
    if explicit := os.environ.get("MOVER_STATE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mover"


@contextmanager
def run_lock(job: str) -> Iterator[None]:
    """Hold the lock of the job named `job`. The kernel releases it when the process ends, however it ends.

    Raises `BusyError` at once if another run holds it, `StateError` if there is no place for it, or one without locks.
    """
    directory = state_directory() / "locks"
    path = directory / (re.sub(r"[^A-Za-z0-9._-]", "_", job) + ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", "set MOVER_STATE to a folder of this user"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another run of the job {job} is active{_holder(descriptor)}", "wait for its end, or stop it"
            ) from None
        except OSError as error:
            raise StateError(
                f"cannot lock {path}: {error.strerror}", "set MOVER_STATE to a folder on a file system that has locks"
            ) from error
        # Who holds it is for people only: a full disk must keep no backup from running.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock, for people; empty if it could not be noted down, or read."""
    with suppress(OSError):
        if holder := os.pread(descriptor, 32, 0).decode(errors="replace").strip():
            return f" (process {holder})"
    return ""
