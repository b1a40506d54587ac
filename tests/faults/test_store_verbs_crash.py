"""The power fails while a store is changed, after each system call: nothing is lost, and the verb begun anew ends well.

`test_store_crash` does so with backups of every kind; here it is each verb, beginning with a store that has a past.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mover.errors import MoverError
from tests.power_cut import CutDisk, RecordingOps, crash_every, crash_seed, remains, spread
from tests.store_verbs import SCENES, copy_from, directory

# States looked at for each prefix of the log that is looked at.
STATES = int(os.environ.get("MOVER_CRASH_STATES", "2"))
EVERY = crash_every()
MANY = 20
VERBS = ["prune", "merge", "repair", "copy"]


def cuts(
    verb: str, folder: Path, number: int, *, every: int = EVERY, honest: bool = True
) -> Iterator[tuple[int, Path]]:
    """What `number` power cuts leave, each after one of `every` calls of the verb: how many there were, the folder."""
    scene = SCENES[verb]
    begun = folder / "begun"
    begun.mkdir()
    scene.begin(begun)
    disk = CutDisk.holding(begun, honest=honest)
    ops = RecordingOps()
    scene.act(begun, directory(begun, ops))
    rng = random.Random(f"{verb} {crash_seed()}")
    left = folder / "left"
    if copy_from(begun).exists():
        copy_from(begun).rename(copy_from(left))
    looked_at = spread(len(ops.log), every, rng)
    for done, op in enumerate(ops.log, 1):
        disk.apply(op)
        if done not in looked_at:
            continue
        for kept in remains(rng, number):
            left.mkdir()
            disk.cut(rng, kept, str(begun), left)
            yield done, left
            shutil.rmtree(left)


def look(verb: str, folder: Path, number: int, every: int) -> int:
    """Cut the power everywhere and see that all is well; in how many states."""
    scene = SCENES[verb]
    looked = 0
    for done, left in cuts(verb, folder, number, every=every):
        try:
            scene.holds(left)
            scene.act(left, directory(left))
            scene.holds(left)
            scene.achieved(left)
        except BaseException as error:
            error.add_note(f"the power failed after call {done}")
            raise
        looked += 1
    return looked


@pytest.mark.parametrize("verb", VERBS)
def test_power_cuts_after_each_call(tmp_path: Path, verb: str) -> None:
    assert look(verb, tmp_path, STATES, EVERY) >= 40 * STATES // EVERY


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", SCENES)
def test_many_power_cuts_after_each_call(tmp_path: Path, verb: str) -> None:
    assert look(verb, tmp_path, MANY, 1) >= 500


@pytest.mark.parametrize("verb", ["prune", "merge", "repair"])
def test_a_disk_that_lies_is_noticed(tmp_path: Path, verb: str) -> None:
    """The tests above can fail: what a verb deletes for good it has first written elsewhere, and synced."""
    scene = SCENES[verb]
    for _, left in cuts(verb, tmp_path, 3, every=1, honest=False):
        try:
            scene.holds(left)
            scene.act(left, directory(left))
            scene.achieved(left)
        except (MoverError, AssertionError):
            return
    pytest.fail("nothing is lost")
