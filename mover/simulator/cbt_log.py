"""Changed block tracking logs: one per disk, linked in the order of snapshots.

The rules are those of sm's libs/sm/VDI.py and cbtutil.py: the log of a disk holds the granules written since its
predecessor's snapshot; a snapshot takes the log over and a new, empty one is made for the disk. One byte per granule
in a mapped file, so that a killed process loses nothing.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRANULE = 64 << 10


class StorageError(Exception):
    """An error of the storage manager: `code` is the number in SR_BACKEND_FAILURE_<code>."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"SR_BACKEND_FAILURE_{code}: {message}")
        self.code = code
        self.message = message


def granules(size: int) -> int:
    """How many granules a disk of `size` bytes has."""
    return -(-size // GRANULE)


@dataclass
class Log:
    """The log of one disk; `parent` and `child` are UUIDs of its neighbours."""

    path: Path
    size: int
    parent: str | None = None
    child: str | None = None
    _map: mmap.mmap | None = field(default=None, repr=False)

    @property
    def dirty(self) -> mmap.mmap:
        """One byte per granule, 1 where it was written."""
        if self._map is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, max(granules(self.size), 1))
                self._map = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
        return self._map

    def mark(self, offset: int, length: int) -> None:
        """Note a write, whether it changed anything or not."""
        first, end = offset // GRANULE, granules(offset + length)
        self.dirty[first:end] = b"\1" * (end - first)

    def resize(self, size: int) -> None:
        """Growth itself marks nothing."""
        self.size = size
        self.close()

    def merge_into(self, other: Log) -> None:
        """OR this log into a later one."""
        mine = self.dirty
        for first in range(0, granules(self.size), 1 << 16):
            piece = mine[first : min(first + (1 << 16), granules(self.size))]
            if any(piece):
                theirs = other.dirty[first : first + len(piece)]
                joined = int.from_bytes(piece, "big") | int.from_bytes(theirs, "big")
                other.dirty[first : first + len(piece)] = joined.to_bytes(len(piece), "big")

    def close(self) -> None:
        """Unmap."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def state(self) -> dict[str, Any]:
        """What is kept besides the granules."""
        return {"file": self.path.name, "size": self.size, "parent": self.parent, "child": self.child}


class Logs:
    """All logs of an SR. `padding` is how many extra bytes a returned bitmap gets: servers may round up."""

    def __init__(self, directory: Path, padding: int = 0) -> None:
        self.padding = padding
        self._directory = directory
        self._logs: dict[str, Log] = {}
        self._made = 0

    def state(self) -> dict[str, Any]:
        """For the state file."""
        return {uuid: log.state() for uuid, log in self._logs.items()}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for uuid, fields in state.items():
            path = self._directory / fields["file"]
            self._logs[uuid] = Log(path, fields["size"], fields["parent"], fields["child"])
            self._made = max(self._made, int(path.stem.rpartition("-")[2]))

    def get(self, uuid: str) -> Log | None:
        """The log of a disk, if it has one."""
        return self._logs.get(uuid)

    def create(self, uuid: str, size: int, parent: str | None = None) -> Log:
        """Begin a log."""
        self._made += 1
        log = Log(self._directory / f"log-{self._made}.cbtlog", size, parent)
        self._logs[uuid] = log
        return log

    def snapshot(self, uuid: str, snapshot: str) -> None:
        """The snapshot takes the disk's log over; the disk gets an empty one."""
        log = self._logs.pop(uuid, None)
        if log is None:
            return
        self._logs[snapshot] = log
        log.child = uuid
        if log.parent and (parent := self._logs.get(log.parent)):
            parent.child = snapshot
        self.create(uuid, log.size, parent=snapshot)

    def drop(self, uuid: str, *, merge: bool) -> None:
        """Delete a log. `merge`: into its child, so that the chain stays usable; else the chain is cut here."""
        log = self._logs.pop(uuid, None)
        if log is None:
            return
        child = self._logs.get(log.child) if log.child else None
        parent = self._logs.get(log.parent) if log.parent else None
        if merge and child is not None:
            log.merge_into(child)
            child.parent = log.parent
            if parent is not None:
                parent.child = log.child
        else:
            if child is not None:
                child.parent = None
            if parent is not None:
                parent.child = None
        log.close()
        log.path.unlink(missing_ok=True)

    def changed(self, older: str, newer: str) -> bytes:
        """The bitmap of what was written between two snapshots, most significant bit first. Raises `StorageError`."""
        if older == newer:
            raise _failed("Source and target VDI are same")
        first, last = self._logs.get(older), self._logs.get(newer)
        if first is None or last is None:
            raise _failed("Source and target VDI are unrelated")
        chain: list[Log] = []
        at = first.child
        while at is not None and (log := self._logs.get(at)) is not None:
            chain.append(log)
            if at == newer:
                return self._bitmap(chain, last.size)
            at = log.child
        raise _failed("Source and target VDI are unrelated")

    def _bitmap(self, chain: list[Log], size: int) -> bytes:
        count = granules(size)
        bits = bytearray(-(-count // 8) + self.padding)
        for log in chain:
            if log.size > size:
                raise StorageError(
                    459,
                    "Changed block tracking log is in an inconsistent state. [opterr=Inconsistent bitmaps]",
                )
            dirty, at = log.dirty, -1
            while (at := dirty.find(b"\1", at + 1)) != -1:
                bits[at // 8] |= 0x80 >> at % 8
        return bytes(bits)


def _failed(reason: str) -> StorageError:
    return StorageError(460, f"Failed to calculate changed blocks for given VDIs. [opterr={reason}]")
