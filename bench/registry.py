"""Which scenarios there are, and what each is given."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.inputs import make_image
from bench.measure import Case
from bench.peers import find_peer

_GROUPS = (
    "full",
    "codec",
    "unchanged",
    "tls",
    "incremental",
    "connections",
    "restore",
    "http",
    "sparse",
    "vms",
    "scaling",
    "start",
    "encrypted",
    "prune",
    "index",
)


@dataclass(frozen=True)
class Setting:
    """`work` keeps inputs between runs; `rounds` is how often everybody is measured; `mib` the size of the image.

    `small` is the quick form of a scenario, `tiny` one that only shows that it works.
    """

    work: Path
    mib: int
    rounds: int
    small: bool = False
    tiny: bool = False

    def image(self) -> Path:
        """The disk image most scenarios read."""
        return make_image(self.work, self.mib)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pick(self, whole: int, small: int, tiny: int) -> int:
        """A number that depends on how much is asked for."""
        return tiny if self.tiny else small if self.small else whole

    def present(self, case: Case, *programs: str) -> bool:
        """Whether all these peers are there; the case tells which are not."""
        missing = [program for program in programs if find_peer(program) is None]
        case.absent += [program for program in missing if program not in case.absent]
        return not missing


@dataclass(frozen=True)
class Scenario:
    """`run` yields a case as soon as it is measured."""

    name: str
    about: str
    run: Callable[[Setting], Iterator[Case]]
    quick: bool = True


def scenarios() -> list[Scenario]:
    """All of them, in the order in which they run."""
    found: list[Scenario] = []
    for group in _GROUPS:
        found += importlib.import_module(f"bench.scenarios.{group}").SCENARIOS
    return found
