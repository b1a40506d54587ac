"""A guest: it puts a real file system on a simulated disk and goes on writing, and knows which granules it wrote.

File systems are made and changed by e2fsprogs on an ordinary file, so nothing is mounted and nobody has to be root.
Everything here blocks; it is for tests and demonstrations, between whatever else happens to the disk.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal
from uuid import UUID

from mover.simulator.granules import granules
from mover.simulator.sparse import copy_range, data_of, read_range
from mover.simulator.storage import Disks
from protocol.cbt import GRANULE
from protocol.extent import Extent, align, clip, merge, split

_PAGE = 4096
_PIECE = 1 << 20
# What e2fsprogs take for the time, in seconds since 1970, so that the same is made whenever it is made.
_CLOCK = "1700000000"
_WORDS = (
    "connection",
    "closed",
    "opened",
    "request",
    "served",
    "from",
    "cache",
    "backup",
    "started",
    "retry",
)

Kind = Literal["random", "text", "repeated", "zeros"]


class GuestError(Exception):
    """A program the guest needs is missing, or failed; the message has what it said."""


class GuestLog:
    """The granules of 64 KiB a guest wrote to, equal to what was there or not, since `clear`. Kept by the guest, by
    what it asked to be written, not by the storage under it.
    """

    def __init__(self) -> None:
        self._granules: set[int] = set()
        self.bytes_written = 0

    @property
    def granules(self) -> list[int]:
        """Their numbers, ascending."""
        return sorted(self._granules)

    def add(self, offset: int, length: int) -> None:
        """Note a write."""
        if length > 0:
            self._granules.update(range(offset // GRANULE, granules(offset + length)))
            self.bytes_written += length

    def clear(self) -> None:
        """Start again, as after a snapshot."""
        self._granules.clear()
        self.bytes_written = 0


class Guest:
    """A guest with the disk `uuid`. What it writes depends on `seed` alone; a file system also on the tree in it, whose
    files keep their times.
    """

    def __init__(self, disks: Disks, uuid: str, seed: int = 0) -> None:
        self.log = GuestLog()
        self._disks = disks
        self._uuid = uuid
        self._random = random.Random(seed)
        self._text = _text(self._random)

    # -- files -------------------------------------------------------------------------------------------------------

    def install(self, tree: Path) -> None:
        """Make an ext4 file system as large as the disk, with the files under `tree`, on the disk, which is empty.

        Raises GuestError, StorageError.
        """
        with tempfile.TemporaryDirectory(dir=self._disks.directory) as folder:
            image = Path(folder) / "image"
            make_ext4(tree, image, self._disks.size(self._uuid), UUID(int=self._random.getrandbits(128), version=4))
            with image.open("rb", buffering=0) as file:
                for extent in data_of(file.fileno(), image.stat().st_size):
                    self.log.add(*extent)
            self._disks.import_file(self._uuid, image, move=True)

    def write_files(self, files: Mapping[str, bytes | Path]) -> None:
        """Put files into the file system, under these absolute paths; folders that are missing are made.

        Raises GuestError if they do not fit; then nothing was written.
        """
        with tempfile.TemporaryDirectory() as folder:
            commands = [f"mkdir {_quoted(path)}" for path in _folders(files)]
            for number, (path, content) in enumerate(files.items()):
                source = content.resolve(strict=True) if isinstance(content, Path) else Path(folder) / str(number)
                if isinstance(content, bytes):
                    source.write_bytes(content)
                # `rm` of what is not there, and `mkdir` of what is, say so and go on
                commands += [f"rm {_quoted(path)}", f"write {_quoted(str(source))} {_quoted(path)}"]
            self._edit(commands)

    def remove_files(self, paths: Iterable[str]) -> None:
        """Delete files. Their blocks keep what was in them, as without discards."""
        self._edit([f"rm {_quoted(path)}" for path in paths])

    def copy_out(self, target: Path) -> None:
        """Write all of the disk into a sparse file."""
        with target.open("wb", buffering=0) as file:
            file.truncate(self._disks.size(self._uuid))
            for extent in self._disks.extents(self._uuid):
                for run in self._disks.runs(self._uuid, extent.offset, extent.length):
                    if run.fd is not None:
                        copy_range(run.fd, file.fileno(), run.file_offset, run.length)

    def copy_in(self, source: Path, start: int = 0, length: int | None = None) -> None:
        """Write what a file holds from byte `start` on, from the disk's first byte on; its holes are left out."""
        with source.open("rb", buffering=0) as file:
            end = min(start + (length or self._disks.size(self._uuid)), source.stat().st_size)
            for extent in clip(data_of(file.fileno(), end), end):
                if extent.end > start:
                    first = max(extent.offset, start)
                    for piece in split([Extent(first, extent.end - first)], _PIECE):
                        self.write(piece.offset - start, read_range(file.fileno(), piece.offset, piece.length))

    # -- bytes -------------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes past any file system."""
        self._disks.write(self._uuid, offset, data)
        self.log.add(offset, len(data))

    def fill(self, offset: int, length: int, kind: Kind) -> None:
        """Write a run of noise, of compressible text, of one page again and again, or of zeros."""
        for piece in split([Extent(offset, length)], _PIECE):
            self.write(piece.offset, self._content(piece.length, kind))

    def scatter(self, count: int, length: int, kind: Kind = "random") -> None:
        """Write `count` pieces of `length` bytes at random places, at multiples of 4 KiB."""
        last = max(0, self._disks.size(self._uuid) - length) // _PAGE
        for _ in range(count):
            self.fill(self._random.randint(0, last) * _PAGE, length, kind)

    def discard(self, offset: int, length: int) -> None:
        """Tell the disk that bytes are no longer needed. Nothing comes of it.

        The servers' driver for VHD does not pass discards down: the old bytes stay, and no change log notes anything.
        """

    # -- inside ------------------------------------------------------------------------------------------------------

    def _content(self, length: int, kind: Kind) -> bytes:
        if kind == "zeros":
            return bytes(length)
        if kind == "random":
            return self._random.randbytes(length)
        if kind == "repeated":
            return (self._text[:_PAGE] * -(-length // _PAGE))[:length]
        text = bytearray(self._text[:length])
        for at in range(0, length - 16, _PAGE):  # no two pages alike
            text[at : at + 16] = self._random.randbytes(8).hex().encode()
        return bytes(text)

    def _edit(self, commands: list[str]) -> None:
        """Let debugfs change a copy of the disk, and write what differs."""
        with tempfile.TemporaryDirectory(dir=self._disks.directory) as folder:
            image, script = Path(folder) / "image", Path(folder) / "commands"
            self.copy_out(image)
            script.write_text("".join(f"{command}\n" for command in commands))
            said = _call("debugfs", "-w", "-f", str(script), str(image))
            if failed := [line for line in said.splitlines() if line.startswith("write: ")]:
                raise GuestError(f"debugfs: {'; '.join(failed)}")
            with image.open("rb", buffering=0) as file:
                for offset, data in self._differences(file.fileno()):
                    self.write(offset, data)

    def _differences(self, fd: int) -> Iterator[tuple[int, bytes]]:
        """The pages of 4 KiB in which a file differs from the disk, joined where they touch."""
        size = self._disks.size(self._uuid)
        held = [*data_of(fd, size), *self._disks.extents(self._uuid)]
        for piece in split(align(merge(held), GRANULE, size), _PIECE):
            new = read_range(fd, piece.offset, piece.length)
            old = self._disks.read(self._uuid, piece.offset, piece.length)
            if new != old:
                pages = (
                    Extent(at, min(_PAGE, piece.length - at))
                    for at in range(0, piece.length, _PAGE)
                    if new[at : at + _PAGE] != old[at : at + _PAGE]
                )
                for extent in merge(pages):
                    yield piece.offset + extent.offset, new[extent.offset : extent.end]


def make_ext4(tree: Path, image: Path, size: int, uuid: UUID) -> None:
    """Make a sparse file of `size` bytes with the ext4 file system `uuid` that holds the files under `tree`.

    Raises GuestError if mkfs.ext4 is missing, or the files do not fit.
    """
    with image.open("wb") as file:
        file.truncate(size)
    extended = f"lazy_itable_init=1,lazy_journal_init=1,hash_seed={uuid}"
    _call("mkfs.ext4", "-q", "-F", "-b", "4096", "-U", str(uuid), "-E", extended, "-d", str(tree), str(image))


def _call(program: str, *arguments: str) -> str:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise GuestError(f"{program} is not installed (package e2fsprogs)")
    done = subprocess.run(
        [path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "E2FSPROGS_FAKE_TIME": _CLOCK},
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        raise GuestError(f"{program} failed with {done.returncode}: {said.strip()}")
    return said


def _folders(paths: Iterable[str]) -> list[str]:
    """All folders above these paths, the outer before the inner."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents if str(parent) != "/"})


def _quoted(text: str) -> str:
    if '"' in text or "\n" in text:
        raise GuestError(f"debugfs cannot be told of {text!r}")
    return f'"{text}"'


def _text(rng: random.Random) -> bytes:
    """A mebibyte that looks like a log."""
    lines: list[str] = []
    length = 0
    while length < _PIECE:
        words = " ".join(rng.choices(_WORDS, k=8))
        lines.append(f"2026-11-{rng.randint(1, 30):02} {rng.randint(0, 23):02}:00:{rng.randint(0, 59):02} {words}\n")
        length += len(lines[-1])
    return "".join(lines).encode()[:_PIECE]
