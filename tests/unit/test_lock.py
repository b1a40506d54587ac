"""One run of a job at a time: what the lock's file cannot take must not keep a backup from running."""

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mover.errors import BusyError, StateError
from mover.lock import run_lock, state_directory


@contextmanager
def files_cannot_grow() -> Iterator[None]:
    """As on a full disk: what is there can be opened, and nothing be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_holder_is_named() -> None:
    with run_lock("job"), pytest.raises(BusyError, match=rf"\(process {os.getpid()}\)"), run_lock("job"):
        pytest.fail("held twice")
    with run_lock("job"):
        pass


def test_a_full_disk_does_not_keep_the_lock_from_being_held() -> None:
    """The process id in it is only for people."""
    with files_cannot_grow(), run_lock("job"), pytest.raises(BusyError, match=r"job is active$"), run_lock("job"):
        pytest.fail("held twice")
    (path,) = (state_directory() / "locks").iterdir()
    assert path.read_bytes() == b""


def test_what_fails_under_the_lock_is_not_taken_for_its_own() -> None:
    with pytest.raises(OSError, match="theirs"), run_lock("job"):
        raise OSError(errno.EIO, "theirs")


def test_a_place_without_locks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StateError, match="No locks available") as caught, run_lock("job"):
        pytest.fail("held without a lock")
    assert "MOVER_STATE" in caught.value.hint


def test_a_place_that_is_no_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOVER_STATE", str(tmp_path / "file"))
    with pytest.raises(StateError, match="cannot write"), run_lock("job"):
        pytest.fail("held without a file")
