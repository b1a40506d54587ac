"""The files of all disks and how they hang together: leaves on base copies, on older base copies.

A file nobody needs any more is dropped at once, and removed when the owner has saved a structure without it. Base
copies that only have one other base copy on them are merged, after that and never before: until then a killed process
would come back with the old structure, in which the file that takes up the other is somebody's content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from mover.simulator.disks_state import SavedNode
from mover.simulator.node import Node


class Tree:
    """The nodes in `directory`. `coalesce` merges base copies; without it chains only grow."""

    def __init__(self, directory: Path, *, coalesce: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._coalesce = coalesce
        self._nodes: dict[str, Node] = {}
        self._dropped: list[Node] = []
        self._retired: list[Node] = []
        self._pins = 0
        self._dropped_under_pin = False

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    @property
    def count(self) -> int:
        """How many granules all files have together."""
        return sum(node.count for node in self._nodes.values())

    def add(self, parent: Node | None, size: int) -> Node:
        """A new, empty leaf on `parent`."""
        node = Node(self.directory, uuid4().hex, parent, size)
        self._nodes[node.name] = node
        return node

    def drop(self, leaf: Node) -> None:
        """Take away a leaf, and the base copies that only it needed."""
        self._dropped_under_pin = self._dropped_under_pin or self._pins > 0
        unused: Node | None = leaf
        while unused is not None and not any(other.parent is unused for other in self._nodes.values()):
            self._forget(unused)
            unused = unused.parent

    def merge(self) -> bool:
        """Merge base copies where that is due; True if the structure changed, and is to be saved.

        Whoever still reads a disk that was dropped reads base copies of others, so these are left alone until then.
        """
        if not self._coalesce or self._dropped_under_pin:
            return False
        merged = False
        children = self._children_by_name()
        for node in list(self._nodes.values()):
            while len(on_it := children[node.name]) == 1 and children[on_it[0].name]:
                child = on_it[0]
                node.absorb(child)
                children[node.name] = children.pop(child.name)
                for grandchild in children[node.name]:
                    grandchild.parent = node
                self._forget(child)
                merged = True
        return merged

    def sweep(self) -> None:
        """The structure was saved: remove what was dropped. What is pinned stays open."""
        for node in self._dropped:
            node.remove()
        self._retired += self._dropped
        self._dropped = []
        self._close_retired()

    def pin(self) -> None:
        """Keep files open, and with what they hold now, until `unpin`."""
        self._pins += 1

    def unpin(self) -> bool:
        """True if this was the last pin and a `merge` had to wait for it."""
        self._pins -= 1
        self._close_retired()
        due = self._pins == 0 and self._dropped_under_pin
        if due:
            self._dropped_under_pin = False
        return due

    def dump(self) -> dict[str, SavedNode]:
        """The structure, as plain data."""
        return {
            node.name: SavedNode(node.parent.name if node.parent else None, node.size) for node in self._nodes.values()
        }

    def load(self, state: Mapping[str, SavedNode]) -> None:
        """Take over what `dump` gave and what is in the files; files of no node are removed."""
        for path in self.directory.iterdir():
            if path.stem not in state:
                path.unlink()
        for name, saved in state.items():
            self._nodes[name] = Node(self.directory, name, None, saved.size)
        for name, saved in state.items():
            self._nodes[name].parent = self._nodes[saved.parent] if saved.parent else None
        children = self._children_by_name()
        for node in self._nodes.values():
            if not children[node.name]:
                node.scrub()

    def close(self) -> None:
        """Close all files. Merging that waits is left to whoever opens them next."""
        self._dropped_under_pin = False
        for node in [*self._nodes.values(), *self._dropped, *self._retired]:
            node.close()

    def _children_by_name(self) -> defaultdict[str, list[Node]]:
        children: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self._nodes.values():
            if node.parent is not None:
                children[node.parent.name].append(node)
        return children

    def _forget(self, node: Node) -> None:
        if self._nodes.pop(node.name, None) is not None:
            self._dropped.append(node)

    def _close_retired(self) -> None:
        if self._pins == 0:
            for node in self._retired:
                node.close()
            self._retired.clear()
