"""The structure of a directory of disks as a file: which nodes there are, which disk is where, how logs are linked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mover.simulator.cbt_log import SavedLog


class SavedNode(msgspec.Struct):
    """A file of a chain: the name of the one under it, and its size in bytes."""

    parent: str | None
    size: int


class SavedDisk(msgspec.Struct):
    """A disk: the file on top of its chain, None once its data were destroyed, and its size in bytes."""

    node: str | None
    size: int


class State(msgspec.Struct):
    """Everything, nodes by name, disks and logs by UUID of the disk."""

    nodes: dict[str, SavedNode] = {}
    disks: dict[str, SavedDisk] = {}
    logs: dict[str, SavedLog] = {}

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a file `save` wrote; an empty state if there is none."""
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Replace the file at once: whoever is killed leaves the old or the new one."""
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self))
        fresh.replace(path)
