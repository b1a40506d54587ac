"""Power cuts without a power switch: record what is written to a directory, and build what a cut may leave of it.

After a cut there is what was synced, and of the rest whatever the kernel happened to have written: each name of a
directory that was not synced may be there or not, each file that was not synced may be whole, cut, empty or zeros, or
have any of its pages and lack others.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from mover.store.backend import Buffer
from mover.store.file_ops import FileOps

# What the kernel writes at once, or not.
PAGE = 4096


@functools.cache
def crash_seed() -> str:
    """What crash tests are random by: $MOVER_CRASH_SEED, always the same without it; "any": another one each time."""
    seed = os.environ.get("MOVER_CRASH_SEED", "1")
    if seed == "any":
        seed = secrets.token_hex(4)
    print(f"MOVER_CRASH_SEED={seed}")
    return seed


def remains(rng: random.Random, number: int) -> Iterator[float]:
    """The chances, for `number` states, of what was not synced: all is lost, all is there, as after a kill, or some."""
    yield from ([0.0, 1.0] + [rng.choice([0.1, 0.5, 0.9]) for _ in range(number)])[:number]


def crash_every() -> int:
    """One of so many calls is looked at; a nightly run looks at each."""
    return int(os.environ.get("MOVER_CRASH_EVERY", "3"))


def spread(number: int, every: int, rng: random.Random) -> frozenset[int]:
    """Of the numbers from 1 to `number` the last and one of each `every`: any, so that no rhythm goes unseen."""
    firsts = range(1, number + 1, every)
    return frozenset({number, *(rng.randrange(first, min(first + every, number + 1)) for first in firsts)})


@dataclass(frozen=True)
class Op:
    """One call, in the order in which they took effect. "note" is what the test wants to remember at this point."""

    call: str
    path: str
    data: bytes = b""
    target: str = ""


@dataclass
class RecordingOps(FileOps):
    """Does what it is told, and remembers it."""

    log: list[Op] = field(default_factory=list)
    _paths: dict[int, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def note(self, what: str) -> None:
        with self._lock:
            self.log.append(Op("note", what))

    def create(self, path: str) -> int:
        with self._lock:
            fd = super().create(path)
            self._paths[fd] = path
            self.log.append(Op("create", path))
            return fd

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        with self._lock:
            super().write(fd, buffers)
            self.log.append(Op("write", self._paths[fd], b"".join(buffers)))

    def sync(self, fd: int) -> None:
        with self._lock:
            super().sync(fd)
            self.log.append(Op("sync", self._paths[fd]))

    def link(self, source: str, target: str) -> None:
        with self._lock:
            super().link(source, target)
            self.log.append(Op("link", source, target=target))

    def unlink(self, path: str) -> None:
        with self._lock:
            super().unlink(path)
            self.log.append(Op("unlink", path))

    def mkdir(self, path: str) -> None:
        with self._lock:
            super().mkdir(path)
            self.log.append(Op("mkdir", path))

    def sync_dir(self, path: str) -> None:
        with self._lock:
            super().sync_dir(path)
            self.log.append(Op("sync_dir", path))


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


class CutDisk:
    """What is on the disk if the power fails after some operations."""

    def __init__(self, *, honest: bool = True) -> None:
        """A disk that is not `honest` takes every sync for done and does nothing."""
        self._honest = honest
        self._files: dict[str, _File] = {}
        self._durable: dict[str, _File | None] = {}
        # By directory: name, and what it stands for: a file, a directory ("dir"), or nothing any more (None).
        self._pending: dict[str, list[tuple[str, _File | str | None]]] = {}

    @classmethod
    def holding(cls, folder: Path, *, honest: bool = True) -> CutDisk:
        """A disk with what is in a folder, all of it durable."""
        disk = cls(honest=honest)
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                disk._durable[str(path)] = None
            else:
                data = bytearray(path.read_bytes())
                disk._files[str(path)] = disk._durable[str(path)] = _File(data, len(data))
        return disk

    def apply(self, op: Op) -> None:
        match op.call:
            case "create":
                self._files[op.path] = _File()
                self._change(op.path, self._files[op.path])
            case "write":
                self._files[op.path].data += op.data
            case "sync" if self._honest:
                self._files[op.path].synced = len(self._files[op.path].data)
            case "link":
                self._change(op.target, self._files[op.path])
            case "unlink":
                self._change(op.path, None)
            case "mkdir":
                self._change(op.path, "dir")
            case "sync_dir" if self._honest:
                for path, what in self._pending.pop(op.path, []):
                    self._settle(self._durable, path, what)

    def _change(self, path: str, what: _File | str | None) -> None:
        self._pending.setdefault(os.path.dirname(path), []).append((path, what))

    @staticmethod
    def _settle(names: dict[str, _File | None], path: str, what: _File | str | None) -> None:
        if what is None:
            names.pop(path, None)
        else:
            names[path] = what if isinstance(what, _File) else None

    def cut(self, rng: random.Random, kept: float, old: str, new: Path) -> None:
        """Write to `new` what may be left of the directory `old`; `kept` is the chance of what was not synced."""
        names = dict(self._durable)
        for changes in self._pending.values():
            for path, what in changes:
                if rng.random() < kept:
                    self._settle(names, path, what)
        for path in sorted(names):
            target = new / os.path.relpath(path, old)
            if not target.parent.is_dir():
                continue
            file = names[path]
            if file is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(self._remains(file, rng, kept))

    @staticmethod
    def _remains(file: _File, rng: random.Random, kept: float) -> bytes:
        whole = bytes(file.data)
        if rng.random() < kept:
            return whole
        if not whole[file.synced :]:
            return whole
        length = rng.randint(file.synced, len(whole))
        zeros = whole[: file.synced].ljust(len(whole), b"\0")
        return rng.choice([whole[: file.synced], whole[:length], zeros, CutDisk._reordered(file, rng)])

    @staticmethod
    def _reordered(file: _File, rng: random.Random) -> bytes:
        """Of what was not synced some pages were written, in any order, and the others are zeros."""
        data = bytearray(file.data)
        for start in range(file.synced, len(data), PAGE):
            if rng.random() < 0.5:
                data[start : start + PAGE] = bytes(min(PAGE, len(data) - start))
        return bytes(data)
