"""Disks of one SR: copy-on-write chains like those of VHD files, with CBT logs, in a folder."""

from __future__ import annotations

import json
import os
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import numpy as np

from mover.simulator.cbt_log import GRANULE, Logs, StorageError, granules
from mover.simulator.chain import Node, Present, copy_range, data_of
from protocol.extent import Extent, clip, merge

__all__ = ["Disks", "Run", "StorageError"]

_STATE = "disks.json"
_PIECE = 4 << 20
_CHAIN_LIMIT = 30


class Run(NamedTuple):
    """`length` bytes that stand at `offset` of the file `descriptor`, or are zeros if it is None."""

    descriptor: int | None
    offset: int
    length: int


class _Disk(NamedTuple):
    leaf: Node | None
    size: int


class Disks:
    """Disks by UUID. Sizes and offsets in bytes. `coalesce`: merge nodes with a single child at once, as the garbage
    collector of a real SR does in its own time. Not thread-safe."""

    def __init__(self, directory: Path, *, coalesce: bool = True, cbt_padding: int = 0) -> None:
        self._directory = directory
        self._coalesces = coalesce
        self._disks: dict[str, _Disk] = {}
        self.logs = Logs(directory, cbt_padding)
        directory.mkdir(parents=True, exist_ok=True)
        self._load()

    def create(self, uuid: str, size: int) -> None:
        """Make an empty disk."""
        self._disks[uuid] = _Disk(self._node(None, size), size)
        self._save()

    def delete(self, uuid: str) -> None:
        """Delete a disk and what only it needed; its CBT log is merged into its successor's."""
        disk = self._disks.pop(uuid)
        self.logs.drop(uuid, merge=True)
        self._drop_leaf(disk.leaf)
        self._save()

    def snapshot(self, uuid: str, snapshot: str) -> None:
        """Freeze the disk's state under another UUID. Raises `StorageError` 109 if the chain is too long."""
        disk = self._disk(uuid)
        if self.chain_depth(uuid) >= _CHAIN_LIMIT:
            raise StorageError(109, "The snapshot chain is too long")
        self._disks[snapshot] = _Disk(self._node(disk.leaf, disk.size), disk.size)
        self._disks[uuid] = _Disk(self._node(disk.leaf, disk.size), disk.size)
        self.logs.snapshot(uuid, snapshot)
        self._save()

    def clone(self, uuid: str, clone: str) -> None:
        """A writable copy that shares what is there. It has no CBT log."""
        disk = self._disk(uuid)
        self._disks[clone] = _Disk(self._node(disk.leaf, disk.size), disk.size)
        self._disks[uuid] = _Disk(self._node(disk.leaf, disk.size), disk.size)
        self._save()

    def resize(self, uuid: str, size: int) -> None:
        """Grow a disk. Raises `StorageError` 79 for anything else."""
        disk = self._disk(uuid)
        if size < disk.size or disk.leaf is None:
            raise StorageError(79, "VDI Invalid size [opterr=shrinking not allowed]")
        disk.leaf.grow(size)
        self._disks[uuid] = disk._replace(size=size)
        if log := self.logs.get(uuid):
            log.resize(size)
        self._save()

    def size(self, uuid: str) -> int:
        """Virtual size."""
        return self._disks[uuid].size

    def write(self, uuid: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write as a guest does: into the top of the chain, and into the CBT log."""
        disk = self._disk(uuid)
        leaf, end = disk.leaf, offset + len(data)
        if leaf is None or offset < 0 or end > disk.size:
            raise StorageError(46, "The VDI is not available [opterr=write outside of it]")
        if not data:
            return
        for edge in {offset // GRANULE, (end - 1) // GRANULE}:
            whole = offset <= edge * GRANULE and min((edge + 1) * GRANULE, disk.size) <= end
            if not whole and not leaf.present[edge]:
                self._copy_up(disk, leaf, edge)
        _write_all(leaf.descriptor, data, offset)
        leaf.present[offset // GRANULE : granules(end)] = True
        if log := self.logs.get(uuid):
            log.mark(offset, len(data))

    def import_file(self, uuid: str, path: Path) -> None:
        """Write the data of a sparse file, and nothing where it has holes."""
        with path.open("rb") as file:
            for start, end in data_of(file.fileno()):
                for offset in range(start, end, _PIECE):
                    self.write(uuid, offset, os.pread(file.fileno(), min(_PIECE, end - offset), offset))

    def read(self, uuid: str, offset: int, length: int) -> bytes:
        """The bytes of a disk."""
        return b"".join(
            bytes(run.length)
            if run.descriptor is None
            else os.pread(run.descriptor, run.length, run.offset).ljust(run.length, b"\0")
            for run in self.runs(uuid, offset, length)
        )

    def runs(self, uuid: str, offset: int, length: int) -> Iterator[Run]:
        """Where the bytes of a disk stand, in order."""
        disk = self._disk(uuid)
        end = min(offset + length, disk.size)
        first = offset // GRANULE
        for stop, node in self._owners(disk, first, granules(end)):
            until = min(stop * GRANULE, end)
            if until > offset:
                yield Run(node.descriptor if node else None, offset, until - offset)
                offset = until

    def extents(self, uuid: str, unit: int = GRANULE) -> list[Extent]:
        """What is allocated in any node of the chain, in multiples of `unit`, cut at the size."""
        disk = self._disk(uuid)
        return clip(self._allocated(disk, unit), disk.size)

    def differing(self, uuid: str, base: str, unit: int) -> list[Extent]:
        """What is allocated in any node of one chain that is not a node of the other, in multiples of `unit`."""
        disk, other = self._disk(uuid), self._disk(base)
        mine, theirs = list(disk.leaf.chain()) if disk.leaf else [], list(other.leaf.chain()) if other.leaf else []
        only = [node for node in mine if node not in theirs] + [node for node in theirs if node not in mine]
        return clip(merge(extent for node in only for extent in _extents_of(node.present, unit)), disk.size)

    def digest(self, uuid: str) -> str:
        """BLAKE3 of the content: of each 64 KiB granule that is not zero, with its offset. For comparisons only."""
        hasher = blake3.blake3()
        for extent in self.extents(uuid):
            for offset in range(extent.offset, extent.end, GRANULE):
                data = self.read(uuid, offset, GRANULE)
                if data.count(0) != len(data):
                    hasher.update(offset.to_bytes(8, "little") + data)
        return hasher.hexdigest()

    def physical_utilisation(self, uuid: str) -> int:
        """Bytes in the topmost node: what this disk alone takes."""
        leaf = self._disks[uuid].leaf
        return 0 if leaf is None else int(np.count_nonzero(leaf.present)) * GRANULE

    def chain_depth(self, uuid: str) -> int:
        """How many nodes the disk's chain has."""
        leaf = self._disks[uuid].leaf
        return 0 if leaf is None else sum(1 for _ in leaf.chain())

    def enable_cbt(self, uuid: str) -> None:
        """Begin a log, if there is none."""
        if self.logs.get(uuid) is None:
            self.logs.create(uuid, self._disk(uuid).size)
            self._save()

    def disable_cbt(self, uuid: str) -> None:
        """Drop the log; the chain is cut behind the last snapshot."""
        self.logs.drop(uuid, merge=False)
        self._save()

    def cbt_enabled(self, uuid: str) -> bool:
        """Whether the disk has a log of its own."""
        return self.logs.get(uuid) is not None

    def changed_blocks(self, older: str, newer: str) -> bytes:
        """The bitmap between two disks. Raises `StorageError` 459 or 460."""
        return self.logs.changed(older, newer)

    def data_destroy(self, uuid: str) -> None:
        """Drop the data and keep the log."""
        disk = self._disks[uuid]
        self._disks[uuid] = disk._replace(leaf=None)
        self._drop_leaf(disk.leaf)
        self._save()

    def crash(self, uuid: str) -> None:
        """The host died with the disk open: its log is inconsistent, and is dropped when it is noticed."""
        self.disable_cbt(uuid)

    def close(self) -> None:
        """Close all files."""
        for node in self._nodes():
            os.close(node.descriptor)
        self._disks.clear()

    def _disk(self, uuid: str) -> _Disk:
        disk = self._disks[uuid]
        if disk.leaf is None:
            raise StorageError(46, "The VDI is not available [opterr=no data]")
        return disk

    def _node(self, parent: Node | None, size: int) -> Node:
        return Node.open(self._directory / f"{uuids.uuid4().hex}.node", parent, size)

    def _owners(self, disk: _Disk, first: int, end: int) -> Iterator[tuple[int, Node | None]]:
        """Runs of granules with the same owner: the granule after the run, and the node (None: zeros)."""
        nodes = list(disk.leaf.chain()) if disk.leaf else []
        # A stretch at a time: a disk may have millions of granules, and who reads asks for a few.
        for start in range(first, end, 1 << 16):
            stop = min(start + (1 << 16), end)
            owner = np.full(stop - start, len(nodes), np.int16)
            for number, node in reversed(list(enumerate(nodes))):
                owner[node.has(start, stop)] = number
            edges = np.flatnonzero(np.diff(owner)) + 1
            for edge in (*edges.tolist(), stop - start):
                number = int(owner[edge - 1])
                yield start + edge, nodes[number] if number < len(nodes) else None

    def _allocated(self, disk: _Disk, unit: int) -> list[Extent]:
        nodes = disk.leaf.chain() if disk.leaf else ()
        return merge(extent for node in nodes for extent in _extents_of(node.present, unit))

    def _copy_up(self, disk: _Disk, leaf: Node, granule: int) -> None:
        start = granule * GRANULE
        length = min(GRANULE, disk.size - start)
        (_, owner), *_ = self._owners(disk, granule, granule + 1)
        if owner is None:
            _write_all(leaf.descriptor, bytes(length), start)
        else:
            copy_range(owner.descriptor, leaf.descriptor, start, length)
        leaf.present[granule] = True

    def _nodes(self) -> list[Node]:
        leaves = [disk.leaf for disk in self._disks.values() if disk.leaf is not None]
        return list({node.id: node for leaf in leaves for node in leaf.chain()}.values())

    def _children(self, node: Node) -> list[Node]:
        return [other for other in self._nodes() if other.parent is node]

    def _drop_leaf(self, leaf: Node | None) -> None:
        """Delete a node nobody uses, its ancestors that nobody uses then, and coalesce where one child is left."""
        node = leaf
        while node is not None and not self._children(node) and not self._is_leaf(node):
            parent = node.parent
            node.remove()
            node = parent
        if node is not None and self._coalesces and not self._is_leaf(node):
            children = self._children(node)
            if len(children) == 1:
                self._merge(children[0], node)

    def _is_leaf(self, node: Node) -> bool:
        return any(disk.leaf is node for disk in self._disks.values())

    def _merge(self, child: Node, parent: Node) -> None:
        """Write a child's granules into its parent, which takes the child's place."""
        parent.grow(len(child.present) * GRANULE)
        for extent in _extents_of(child.present, GRANULE):
            copy_range(child.descriptor, parent.descriptor, extent.offset, extent.length)
        parent.present[: len(child.present)] |= child.present
        for other in self._children(child):
            other.parent = parent
        for uuid, disk in self._disks.items():
            if disk.leaf is child:
                self._disks[uuid] = disk._replace(leaf=parent)
        child.remove()

    def _save(self) -> None:
        state = {
            "nodes": {node.id: node.parent.id if node.parent else None for node in self._nodes()},
            "disks": {uuid: [disk.leaf.id if disk.leaf else None, disk.size] for uuid, disk in self._disks.items()},
            "logs": self.logs.state(),
        }
        unfinished = self._directory / (_STATE + ".new")
        unfinished.write_text(json.dumps(state))
        unfinished.rename(self._directory / _STATE)

    def _load(self) -> None:
        path = self._directory / _STATE
        if not path.exists():
            return
        state: dict[str, Any] = json.loads(path.read_text())
        largest = max((size for _, size in state["disks"].values()), default=0)
        opened: dict[str, Node] = {}

        def node(id: str) -> Node:
            if id not in opened:
                parent = state["nodes"][id]
                opened[id] = Node.open(self._directory / id, node(parent) if parent else None, largest)
            return opened[id]

        for uuid, (leaf, size) in state["disks"].items():
            self._disks[uuid] = _Disk(node(leaf) if leaf else None, size)
        self.logs.load(state["logs"])
        for stray in self._directory.glob("*.node"):
            if stray.name not in opened:
                stray.unlink()


def _extents_of(present: Present, unit: int) -> list[Extent]:
    """Runs of granules that are present, rounded outwards to multiples of `unit`."""
    padded = np.concatenate([[False], present, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    runs = (
        (start * GRANULE // unit * unit, -(-end * GRANULE // unit) * unit)
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
    return merge(Extent(start, end - start) for start, end in runs)


def _write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
