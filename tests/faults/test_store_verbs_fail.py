"""Whatever changes a store fails at each of its writes: it says so, nothing is lost, and the next time it works.

At one of so many of them; a nightly run goes through all.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mover.errors import MoverError, StoreFullError, StoreIoError, StoreUnansweredError
from mover.store.backend import Buffer
from mover.store.file_ops import FileOps
from tests.power_cut import crash_every, crash_seed, spread
from tests.store_verbs import SCENES, copy_from, directory


@dataclass
class FailingOps(FileOps):
    """Call number `at` fails with `error`: if `on` all that follow do, too, but for taking names away, which needs no
    space. Removing what is not finished counts as well, unless the disk is full.
    """

    at: int
    error: int
    on: bool
    calls: int = 0
    failed: int = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.on and self.calls > self.at):
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: str) -> int:
        self._count()
        return super().create(path)

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        self._count()
        super().write(fd, buffers)

    def sync(self, fd: int) -> None:
        self._count()
        super().sync(fd)

    def link(self, source: str, target: str) -> None:
        self._count()
        super().link(source, target)

    def unlink(self, path: str) -> None:
        if not self.on:
            self._count()
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self._count()
        super().mkdir(path)

    def sync_dir(self, path: str) -> None:
        self._count()
        super().sync_dir(path)


# Where it is not known whether a name lasts, that is said rather than why.
FAULTS = {
    "the disk is full": (errno.ENOSPC, True, (StoreFullError, StoreUnansweredError)),
    "one call fails": (errno.EIO, False, StoreIoError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", SCENES)
def test_each_write_fails_once(tmp_path: Path, verb: str, fault: str) -> None:
    scene = SCENES[verb]
    error, on, expected = FAULTS[fault]
    beginning = tmp_path / "beginning"
    beginning.mkdir()
    scene.begin(beginning)
    folder = tmp_path / "now"
    if copy_from(beginning).exists():
        shutil.copytree(copy_from(beginning), copy_from(folder))
    shutil.copytree(beginning, folder)
    whole = FailingOps(1 << 30, error, on)
    scene.act(folder, directory(folder, whole))
    scene.achieved(folder)
    shutil.rmtree(folder)
    assert whole.calls > 20, "more calls than that change something"
    looked_at = spread(whole.calls, crash_every(), random.Random(f"{verb} {fault} {crash_seed()}"))
    said = 0
    for at in sorted(looked_at):
        shutil.copytree(beginning, folder)
        ops = FailingOps(at, error, on)
        try:
            scene.act(folder, directory(folder, ops))
        except MoverError as caught:
            assert isinstance(caught, expected), f"call {at}: {caught!r}"
            assert ops.failed
            said += 1
        except BaseException as caught:
            caught.add_note(f"call {at} failed")
            raise
        try:
            scene.holds(folder)
            scene.act(folder, directory(folder))
            scene.holds(folder)
            scene.achieved(folder)
        except BaseException as caught:
            caught.add_note(f"after call {at} had failed")
            raise
        shutil.rmtree(folder)
    assert said > len(looked_at) // 2, "not all failures may pass unnoticed"
