"""Checking a store: everything that restore points need, or everything there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mover.store.backend import Backend
from mover.store.identity import Identity
from mover.store.index import IndexView
from mover.store.pages import PageCache
from mover.store.point import Point


@dataclass(frozen=True)
class Damage:
    """An object of the store, what is wrong with it, and the ids of the restore points that suffer."""

    object: str
    reason: str
    points: tuple[str, ...]


@dataclass
class Verification:
    """One check of a store."""

    backend: Backend
    identity: Identity
    view: IndexView
    cache: PageCache
    chunk_size: int
    deep: bool
    progress: Callable[[int, int], None] | None

    def run(self, wanted: Sequence[Point], all_points: Sequence[Point], *, everything: bool) -> Iterator[Damage]:
        """Yield what is damaged."""
        yield from ()
