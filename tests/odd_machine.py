"""`mover` on a machine whose clock and whose store's file system are as a file says, which may change at any time.

`python -m tests.odd_machine FILE ARGUMENTS...` runs the command line with these arguments. FILE is JSON: `clock` is by
how many seconds the wall clock is off, `store` the error (errno) of everything that would write to the store; one that
is full still takes names away, one that is read-only does not. The pauses before a lost connection is tried again are
`pauses` times as long as usual: it is tried as often as ever.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mover.cli import main
from mover.store import directory
from mover.store.backend import Buffer
from mover.store.file_ops import FileOps
from protocol.nbd import Patience

_time = time.time
_pause = Patience.pause


def _state() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return found


def tell(file: Path, **told: float) -> None:
    """Change what the file says, at once and as a whole."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(told))
    new.rename(file)


class OddOps(FileOps):
    """Fails as told."""

    def _check(self, *, frees: bool = False) -> None:
        code = _state().get("store", 0)
        if code and not (frees and code == errno.ENOSPC):
            raise OSError(code, os.strerror(code))

    def create(self, path: str) -> int:
        self._check()
        return super().create(path)

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        self._check()
        super().write(fd, buffers)

    def sync(self, fd: int) -> None:
        self._check()
        super().sync(fd)

    def link(self, source: str, target: str) -> None:
        self._check()
        super().link(source, target)

    def unlink(self, path: str) -> None:
        self._check(frees=True)
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self._check()
        super().mkdir(path)


if __name__ == "__main__":
    time.time = lambda: _time() + _state().get("clock", 0.0)
    directory.FileOps = OddOps  # type: ignore[misc]
    Patience.pause = lambda self, failures: _pause(self, failures) * _state().get("pauses", 1.0)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
