"""What every test gets: state of its own, and one setting of hypothesis for slow and shared machines.

Places for stores are here because one server then does for all modules: a fixture that a module imports is its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.store_backends import place, weed

__all__ = ["place", "weed"]

settings.register_profile("mover", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# On CI the examples are the same every time: a failure there is of the change, and a new example is found at home.
settings.register_profile("ci", settings.get_profile("mover"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "mover")


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Locks and other state of the program, away from the user's."""
    directory = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("MOVER_STATE", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "")
    monkeypatch.setenv("AWS_CONFIG_FILE", "")
    yield directory
