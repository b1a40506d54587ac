"""Logs of changed blocks: one per disk, linked from older to newer.

The log of a disk holds what was written since the snapshot before it. A snapshot takes the log over, and the live disk
starts an empty one; so the log of a snapshot says how it differs from its predecessor. What differs between any two
disks of a chain is the union of the logs on the way from the older, exclusively, to the newer.

Source: sm libs/sm/VDI.py and cbtutil.py, blktap drivers/block-log.c. The server keeps bits in the other order and
turns them around when it answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from mover.simulator.granules import GranuleMap, granules
from protocol.cbt import GRANULE

_FAILED = "Failed to calculate changed blocks for given VDIs. [opterr={}]"
_INCONSISTENT = "Changed block tracking log is in an inconsistent state. [opterr=Inconsistent bitmaps]"


class StorageError(Exception):
    """What a storage driver answers. `code` is the number in SR_BACKEND_FAILURE_<code> (sm XE_SR_ERRORCODES.xml)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SavedLog(NamedTuple):
    """A log without its flags, for persisting; see `_Log`."""

    size: int
    file: str
    parent: str | None
    child: str | None
    consistent: bool


@dataclass
class _Log:
    """`parent` and `child` are UUIDs of disks; `consistent` is false after a crash of the host that wrote it.

    `file` names the flags, whichever disk has the log: taking a log over moves no file, so no kill can lose it.
    """

    size: int
    file: str
    changed: GranuleMap
    parent: str | None = None
    child: str | None = None
    consistent: bool = True


class CbtLogs:
    """The logs in `directory`.

    The flags are in files; the owner persists the links with `dump`, and calls `sweep` once that is done.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._logs: dict[str, _Log] = {}
        self._dropped: list[_Log] = []

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._logs

    def enable(self, uuid: str, size: int) -> None:
        """Start an empty log that is linked to nothing. Nothing happens if there is one."""
        if uuid not in self._logs:
            self._logs[uuid] = self._log(size, uuid4().hex)

    def disable(self, uuid: str) -> None:
        """Drop the log of a live disk, which cuts the chain: the logs of its snapshots stay, and end before it."""
        log = self._logs.pop(uuid, None)
        if log is not None:
            self._link(log.parent, None)
            self._dropped.append(log)

    def mark(self, uuid: str, offset: int, length: int) -> None:
        """Record that bytes were written, equal to the old ones or not."""
        log = self._logs.get(uuid)
        if log is not None and length > 0:
            log.changed.mark(offset // GRANULE, granules(offset + length))

    def snapshot(self, uuid: str, snapshot: str) -> None:
        """The snapshot takes over the log of `uuid`, which starts an empty one."""
        log = self._logs.pop(uuid, None)
        if log is None:
            return
        self._logs[snapshot] = log
        self._link(log.parent, snapshot)
        log.child = uuid
        self.enable(uuid, log.size)
        self._logs[uuid].parent = snapshot

    def destroy(self, uuid: str) -> None:
        """Drop the log of a destroyed disk; what it recorded goes into the next one, so the chain holds."""
        log = self._logs.pop(uuid, None)
        if log is None:
            return
        child = self._logs.get(log.child or "")
        if child is not None and log.size <= child.size:
            child.changed.merge(log.changed)
            child.parent = log.parent
            self._link(log.parent, log.child)
        else:
            self._link(log.parent, None)
        self._dropped.append(log)

    def resize(self, uuid: str, size: int) -> None:
        """The disk grew. That sets no flags: what was added reads as zeros until it is written."""
        log = self._logs.get(uuid)
        if log is not None:
            log.changed.resize(granules(size))
            log.size = size

    def crash(self, uuid: str) -> None:
        """The host died with the disk open for writing: the log cannot be trusted."""
        if uuid in self._logs:
            self._logs[uuid].consistent = False

    def activate(self, uuid: str) -> bool:
        """Look at the log before the disk is opened for writing. A log that cannot be trusted is dropped: False."""
        log = self._logs.get(uuid)
        if log is None or log.consistent:
            return True
        self.disable(uuid)
        return False

    def changed(self, older: str, newer: str) -> bytes:
        """One bit for each granule of `newer`, most significant first: what differs between the two.

        Raises StorageError: 460 if they are the same or not in one chain, 459 if the disk shrank on the way.
        """
        if older == newer:
            raise StorageError(460, _FAILED.format("Source and target VDI are same"))
        target = self._logs.get(newer)
        if older not in self._logs or target is None:
            raise StorageError(460, _FAILED.format("Source and target VDI are unrelated"))
        logs = list(self._between(older, newer))
        if any(log.size > target.size for log in logs):
            raise StorageError(459, _INCONSISTENT)
        union = np.zeros(granules(target.size), dtype=np.uint8)
        for log in logs:
            for first, end in log.changed.runs():
                union[first:end] = 1
        return np.packbits(union).tobytes()

    def dump(self) -> dict[str, SavedLog]:
        """The links, as plain data."""
        return {
            uuid: SavedLog(log.size, log.file, log.parent, log.child, log.consistent)
            for uuid, log in self._logs.items()
        }

    def load(self, state: Mapping[str, SavedLog]) -> None:
        """Take over what `dump` gave and the flags in the files; files of no log are removed."""
        for uuid, saved in state.items():
            log = self._log(saved.size, saved.file)
            log.parent, log.child, log.consistent = saved.parent, saved.child, saved.consistent
            self._logs[uuid] = log
        known = {log.file for log in self._logs.values()}
        for path in self._directory.iterdir():
            if path.name not in known:
                path.unlink()

    def sweep(self) -> None:
        """Remove the files of dropped logs."""
        for log in self._dropped:
            log.changed.remove()
        self._dropped.clear()

    def _log(self, size: int, file: str) -> _Log:
        return _Log(size, file, GranuleMap(self._directory / file, granules(size)))

    def _between(self, older: str, newer: str) -> Iterator[_Log]:
        step = self._logs[older].child
        while step is not None and step in self._logs:
            yield self._logs[step]
            if step == newer:
                return
            step = self._logs[step].child
        raise StorageError(460, _FAILED.format("Source and target VDI are unrelated"))

    def _link(self, parent: str | None, child: str | None) -> None:
        if parent is not None and parent in self._logs:
            self._logs[parent].child = child
