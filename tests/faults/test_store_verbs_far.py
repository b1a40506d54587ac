"""Whatever changes a store dies after any of its requests, in a directory and in a bucket: nothing is lost.

The verb begun anew ends well then.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.test_store_crash_far import Recorded, left_behind
from tests.power_cut import crash_seed
from tests.store_backends import Place
from tests.store_verbs import SCENES, copy_from, directory

# Moments looked at for each verb; a nightly run looks at all of them.
MOMENTS = int(os.environ.get("MOVER_FAR_CRASHES", "4"))


def filled(place: Place, objects: dict[str, bytes]) -> Place:
    backend = place.backend()
    for key, data in objects.items():
        assert backend.put(key, data)
    return place


def fetched(place: Place, folder: Path) -> Path:
    """The folder of a scene with the store that is at a place now."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    place.download(folder / "store")
    return folder


@pytest.mark.parametrize("verb", SCENES)
def test_a_verb_that_dies_after_any_request(place: Place, tmp_path: Path, verb: str) -> None:
    scene = SCENES[verb]
    begun, left = tmp_path / "begun", tmp_path / "left"
    begun.mkdir()
    left.mkdir()
    scene.begin(begun)
    before = {key: directory(begun).get(key) for key, _ in directory(begun).list("")}
    recorded = Recorded(filled(place.another(), before).backend())
    scene.act(begun, recorded)
    if copy_from(begun).exists():
        copy_from(begun).rename(copy_from(left))
    assert len(recorded.log) > 5
    rng = random.Random(f"{verb} {crash_seed()}")
    for moment in rng.sample(range(1, len(recorded.log) + 1), min(MOMENTS, len(recorded.log))):
        again = filled(place.another(), left_behind(recorded.log[:moment], rng, before))
        try:
            scene.holds(fetched(again, left))
            scene.act(left, again.backend())
            scene.holds(fetched(again, left))
            scene.achieved(left)
        except BaseException as error:
            error.add_note(f"it died after request {moment}: {recorded.log[moment - 1][0]}")
            raise
