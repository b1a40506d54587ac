"""The restore points that a prune must spare, and forgetting points so that no prune is fooled by it."""

from __future__ import annotations

from collections.abc import Sequence

from mover.errors import FormatTooNewError, StoreDamagedError
from mover.store import point as points
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import Identity
from mover.store.lease import read_leases
from mover.store.names import POINTS, TRASH, PointName, parse_point
from mover.store.point import BadPointError, LaterPointError, Point

# A writer may build on a point while it is forgotten, and commit while the trash is emptied: the second look finds
# one or the other.
_LOOKS = 2


def read_roots(backend: Backend, identity: Identity, forgotten: frozenset[str]) -> list[tuple[Point, bool]]:
    """All points, and those in the trash but for the keys in `forgotten`; True if it was found in the trash.

    Raises `StoreDamagedError`, or `FormatTooNewError` for one of a later format.

    Points before the trash: what is moved from one to the other meanwhile is seen.
    """
    found: dict[PointName, tuple[Point, bool]] = {}
    for _ in range(_LOOKS):
        for prefix in (POINTS, TRASH):
            for key, _ in backend.list(prefix):
                name = parse_point(key)
                if name is None or name in found or key in forgotten:
                    continue
                if (point := _read(backend, identity, key, name)) is not None:
                    found[name] = point, prefix == TRASH
    return list(found.values())


def list_forgotten(backend: Backend) -> frozenset[str]:
    """The keys in the trash whose points are gone; one that is there still is only about to be forgotten."""
    trash = [(key, parse_point(key)) for key, _ in backend.list(TRASH)]
    there = {parse_point(key) for key, _ in backend.list(POINTS)}
    return frozenset(key for key, name in trash if name is not None and name not in there)


def _read(backend: Backend, identity: Identity, key: str, name: PointName) -> Point | None:
    try:
        data = backend.get(key, 0, points.MAX_LENGTH + 1)
        return None if data == points.FENCE else points.decode(identity, name, data)
    except ObjectMissingError:
        return None
    except LaterPointError as error:
        raise FormatTooNewError(
            f"{backend.location}/{key}: {error}; nothing is deleted, because what it needs is not known",
            "prune with that mover",
        ) from error
    except BadPointError as error:
        raise StoreDamagedError(
            f"{backend.location}/{key} is damaged: {error}; nothing is deleted, because what it needs is not known",
            "remove this file, or restore it from a copy of the store, and prune again",
        ) from error


def forget(backend: Backend, existing: Sequence[Point], wanted: Sequence[Point]) -> list[Point]:
    """Move `wanted` points to the trash; returns those moved. `existing` are all that can be read, oldest first.

    Left alone are the newest point of a VM that would have none, and points of writers that hold a lease: the numbers
    of their commits must have no gaps, or a prune could not shut them out.
    """
    leased = read_leases(backend)
    names = {point.name for point in wanted if point.name.wid not in leased}
    kept = {point.record.vm_uuid for point in existing if point.name not in names}
    for point in reversed(existing):
        if point.record.vm_uuid not in kept:
            kept.add(point.record.vm_uuid)
            names.discard(point.name)
    return [point for point in wanted if point.name in names and _move(backend, point.name)]


def _move(backend: Backend, name: PointName) -> bool:
    try:
        data = backend.get(name.key)
    except ObjectMissingError:
        return False
    backend.put(name.trash_key, data)
    # Were it to come back after a power cut, it would be a point whose packs are gone.
    backend.delete(name.key, durable=True)
    return True
