"""What every test gets: state of its own, so that runs on the machine are never met."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Locks and other state of the program, away from the user's."""
    directory = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("MOVER_STATE", str(directory))
    yield directory
