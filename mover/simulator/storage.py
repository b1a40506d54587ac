"""Disks with snapshot chains, on sparse files, with change logs.

A disk is a leaf of a tree of nodes; each node holds the granules that were written while it was on top. A snapshot
turns the leaf into a base copy that nobody writes any more and hangs two new, empty leaves under it: one goes on as
the disk, the other is the snapshot. Nothing is copied then; a write to part of a granule copies that granule.

Everything is in one directory and survives a killed process: the structure in `disks.json`, replaced atomically, the
content and the maps in files that the kernel has. (A power cut may lose something: this is no production storage.)

Source: sm libs/sm/VDI.py, drivers/FileSR.py, vhdutil.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mover.simulator.cbt_log import CbtLogs, StorageError
from mover.simulator.chain import Tree
from mover.simulator.disks_state import SavedDisk, State
from mover.simulator.granules import granules
from mover.simulator.node import Node, Run, owners, runs
from mover.simulator.sparse import Digest, copy_range, data_of, digest_file, read_range
from protocol.cbt import GRANULE
from protocol.extent import Extent, clip

__all__ = ["CHAIN_LIMIT", "Disks", "Run", "StorageError", "digest_file"]

CHAIN_LIMIT = 30


@dataclass
class _Disk:
    """`node` is None once the data were destroyed; the size is still known then."""

    node: Node | None
    size: int


class Disks:
    """All disks of one storage repository. Sizes and offsets are bytes; disks are named by UUID.

    `capacity` bounds the bytes taken by content (StorageError 44 past it). `coalesce` merges base copies that only
    have another base copy under them; without it chains only grow. `bitmap_padding` appends that many zero bytes to
    every bitmap of changed blocks.
    """

    def __init__(self, directory: Path, *, coalesce: bool = True) -> None:
        self.directory = directory
        self.capacity: int | None = None
        self.bitmap_padding = 0
        self._state = directory / "disks.json"
        self._tree = Tree(directory / "nodes", coalesce=coalesce)
        self._logs = CbtLogs(directory / "cbt")
        self._disks: dict[str, _Disk] = {}
        self._load()

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._disks

    # -- disks and snapshots -----------------------------------------------------------------------------------------

    def create(self, uuid: str, size: int) -> None:
        """Make a disk that reads as zeros."""
        if uuid in self._disks:
            raise StorageError(1200, f"VDI {uuid} exists")
        if size < 0:
            raise StorageError(79, "VDI Invalid size")
        self._disks[uuid] = _Disk(self._tree.add(None, size), size)
        self._save()

    def delete(self, uuid: str) -> None:
        """Destroy a disk. What its change log recorded goes into the next one."""
        disk = self._disk(uuid)
        del self._disks[uuid]
        self._logs.destroy(uuid)
        if disk.node is not None:
            self._tree.drop(disk.node)
        self._commit()

    def snapshot(self, uuid: str, new_uuid: str) -> None:
        """Freeze the content of `uuid` under the name `new_uuid`, which takes over the change log."""
        self._fork(uuid, new_uuid)
        self._logs.snapshot(uuid, new_uuid)
        self._commit()

    def clone(self, uuid: str, new_uuid: str) -> None:
        """A second disk with the content of `uuid`, and no change log."""
        self._fork(uuid, new_uuid)
        self._commit()

    def data_destroy(self, uuid: str) -> None:
        """Drop the content of a snapshot and keep its change log. Nothing happens if that was done before."""
        disk = self._disk(uuid)
        if disk.node is not None:
            node, disk.node = disk.node, None
            self._tree.drop(node)
            self._commit()

    def resize(self, uuid: str, size: int) -> None:
        """Grow a disk; what is added reads as zeros, and is in no change log."""
        disk, node = self._writable(uuid)
        if size < disk.size:
            raise StorageError(110, "VDI resize failed [opterr=shrinking not allowed]")
        node.resize(size)
        disk.size = size
        self._logs.resize(uuid, size)
        self._save()

    def size(self, uuid: str) -> int:
        """Bytes of the disk."""
        return self._disk(uuid).size

    def has_data(self, uuid: str) -> bool:
        """Whether the disk exists and can be read: False after `data_destroy`."""
        disk = self._disks.get(uuid)
        return disk is not None and disk.node is not None

    def chain_depth(self, uuid: str) -> int:
        """How many files a reader of the disk goes through. None of them can be added at CHAIN_LIMIT."""
        disk = self._disk(uuid)
        return 0 if disk.node is None else len(disk.node.chain())

    def physical_utilisation(self, uuid: str) -> int:
        """Bytes taken by the disk's own file, as storage drivers count: what is in base copies is nobody's."""
        disk = self._disk(uuid)
        return 0 if disk.node is None else disk.node.count * GRANULE

    def used(self) -> int:
        """Bytes taken by all content, base copies included."""
        return self._tree.count * GRANULE

    # -- content -----------------------------------------------------------------------------------------------------

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """In this block what `runs` gave stays open, and of snapshots what it was, even if they are destroyed."""
        self._tree.pin()
        try:
            yield
        finally:
            if self._tree.unpin() and self._tree.merge():
                self._save()

    def runs(self, uuid: str, offset: int, length: int) -> Iterator[Run]:
        """Where the bytes are: (open file, offset in it, length), or (None, 0, length) for zeros.

        Hold `pinned` if anything is awaited before the last file is read. Raises StorageError.
        """
        disk, node = self._readable(uuid)
        _check_range(disk.size, offset, length)
        return runs(node.chain(), offset, length)

    def extents(self, uuid: str) -> list[Extent]:
        """The parts that are in some file of the chain, in whole granules, cut at the disk's size."""
        disk, node = self._readable(uuid)
        found = owners(node.chain(), 0, granules(disk.size))
        return clip(
            (Extent(first * GRANULE, (end - first) * GRANULE) for first, end, owner in found if owner is not None),
            disk.size,
        )

    def files(self, uuid: str) -> list[tuple[str, list[Extent]]]:
        """The files of the disk's chain, oldest first: a name for each, and what is in it, in whole granules."""
        _, node = self._readable(uuid)
        return [(link.name, link.extents()) for link in node.chain()]

    def read(self, uuid: str, offset: int, length: int) -> bytes:
        """The bytes themselves."""
        pieces = [
            bytes(run.length) if run.fd is None else read_range(run.fd, run.file_offset, run.length)
            for run in self.runs(uuid, offset, length)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, uuid: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes. Raises StorageError 44 if full.

        The change log notes them first, equal to the old ones or not: a killed process must not come back with a
        change that no log names.
        """
        disk, node = self._writable(uuid)
        view = memoryview(data).cast("B")
        _check_range(disk.size, offset, len(view))
        if not view:
            return
        first, end = offset // GRANULE, granules(offset + len(view))
        self._make_room(node, first, end)
        self._logs.mark(uuid, offset, len(view))
        for granule in {first, end - 1}:
            self._complete(node, granule, offset, offset + len(view))
        node.store(offset, view)
        node.mark(first, end)

    def import_file(self, uuid: str, path: Path, *, move: bool = False) -> None:
        """Give an empty disk the content of a file, holes left holes; `move` takes the file itself.

        Raises StorageError if the disk has content already, or is smaller than the file.
        """
        disk, node = self._writable(uuid)
        size = path.stat().st_size
        if any(link.count for link in node.chain()):
            raise StorageError(1200, "only an empty disk can take over a file")
        if size > disk.size:
            raise StorageError(79, "VDI Invalid size")
        with path.open("rb", buffering=0) as file:
            data = list(data_of(file.fileno(), size))
            for extent in data:
                self._make_room(node, extent.offset // GRANULE, granules(extent.end))
                self._logs.mark(uuid, extent.offset, extent.length)
            if not move or path.stat().st_dev != self._tree.directory.stat().st_dev:
                for extent in data:
                    copy_range(file.fileno(), node.fd, extent.offset, extent.length)
            else:
                node.adopt(path)
        for extent in data:
            node.mark(extent.offset // GRANULE, granules(extent.end))

    def digest(self, uuid: str) -> str:
        """A hash of size and content, whatever the chain. Cheap on sparse disks; equal to `digest_file` of a copy."""
        hasher = Digest(self.size(uuid))
        for run in self.runs(uuid, 0, self.size(uuid)):
            if run.fd is not None:
                hasher.add(run.fd, run.file_offset, run.length)
        return hasher.hexdigest()

    # -- changed blocks ----------------------------------------------------------------------------------------------

    def cbt_enabled(self, uuid: str) -> bool:
        """Whether the disk has a change log of its own."""
        self._disk(uuid)
        return uuid in self._logs

    def enable_cbt(self, uuid: str) -> None:
        """Start a change log, unless there is one."""
        self._logs.enable(uuid, self._disk(uuid).size)
        self._save()

    def disable_cbt(self, uuid: str) -> None:
        """Drop the change log: the chain of logs ends before this disk."""
        self._disk(uuid)
        self._logs.disable(uuid)
        self._save()

    def changed_blocks(self, from_uuid: str, to_uuid: str) -> bytes:
        """A bitmap, most significant bit first, of the granules of `to_uuid` written since the older `from_uuid`.

        Raises StorageError 460 (not in one chain) and 459 (inconsistent).
        """
        self._disk(from_uuid)
        self._disk(to_uuid)
        return self._logs.changed(from_uuid, to_uuid) + bytes(self.bitmap_padding)

    def crash(self, uuid: str) -> None:
        """The host died while the disk was open for writing; `activate` will notice."""
        self._disk(uuid)
        self._logs.crash(uuid)
        self._save()

    def activate(self, uuid: str) -> bool:
        """Called when a VM that has the disk starts. False: its change log was not to be trusted and is gone.

        The server then leaves the message VDI_CBT_METADATA_INCONSISTENT.
        """
        self._disk(uuid)
        trusted = self._logs.activate(uuid)
        self._save()
        return trusted

    # -- inside ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all files."""
        self._tree.close()

    def _disk(self, uuid: str) -> _Disk:
        disk = self._disks.get(uuid)
        if disk is None:
            raise StorageError(46, f"The VDI is not available [opterr=VDI {uuid} does not exist]")
        return disk

    def _readable(self, uuid: str) -> tuple[_Disk, Node]:
        disk = self._disk(uuid)
        if disk.node is None:
            raise StorageError(46, f"The VDI is not available [opterr=VDI {uuid} has no data]")
        return disk, disk.node

    _writable = _readable

    def _fork(self, uuid: str, new_uuid: str) -> None:
        disk, node = self._readable(uuid)
        if new_uuid in self._disks:
            raise StorageError(1200, f"VDI {new_uuid} exists")
        if node.parent is not None and node.count == 0 and node.size == node.parent.size:
            self._disks[new_uuid] = _Disk(self._tree.add(node.parent, disk.size), disk.size)
            return
        if len(node.chain()) >= CHAIN_LIMIT:
            raise StorageError(109, "The snapshot chain is too long")
        disk.node = self._tree.add(node, disk.size)
        self._disks[new_uuid] = _Disk(self._tree.add(node, disk.size), disk.size)

    def _make_room(self, node: Node, first: int, end: int) -> None:
        if self.capacity is None:
            return
        view = node.present.view(first, end)
        fresh = end - first - (0 if view is None else int(view.sum()))
        if self.used() + fresh * GRANULE > self.capacity:
            raise StorageError(44, "There is insufficient space")

    def _complete(self, node: Node, granule: int, start: int, end: int) -> None:
        """Before a write of part of a granule that is not in this file: bring the rest of it here."""
        if node.parent is None or node.has_any(granule, granule + 1):
            return
        if start <= granule * GRANULE and end >= min((granule + 1) * GRANULE, node.size):
            return
        for run in runs(node.parent.chain(), granule * GRANULE, GRANULE):
            if run.fd is not None:
                copy_range(run.fd, node.fd, run.file_offset, run.length)

    def _commit(self) -> None:
        """Save, and only then merge: see `Tree`."""
        self._save()
        if self._tree.merge():
            self._save()

    def _save(self) -> None:
        disks = {
            uuid: SavedDisk(disk.node.name if disk.node else None, disk.size) for uuid, disk in self._disks.items()
        }
        State(self._tree.dump(), disks, self._logs.dump()).save(self._state)
        self._logs.sweep()
        self._tree.sweep()

    def _load(self) -> None:
        state = State.load(self._state)
        self._tree.load(state.nodes)
        for uuid, disk in state.disks.items():
            self._disks[uuid] = _Disk(self._tree[disk.node] if disk.node else None, disk.size)
        self._logs.load(state.logs)


def _check_range(size: int, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise StorageError(200, f"I/O error [opterr={length} bytes at {offset} of a disk of {size}]")
