"""Damage to the small objects beside packs, index and points: keys, what is in the trash, notes of runs and repairs.

Nothing that is stored hangs on them, or so little that whoever needs one says so then. But what is not what was written
is a sign of a disk that fails, and a check of everything looks at everything.
"""

from __future__ import annotations

from collections.abc import Iterator

from mover.store import lost, partial
from mover.store import point as points
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import Identity
from mover.store.names import TRASH, parse_point
from mover.store.point import BadPointError


def damaged_notes(backend: Backend, identity: Identity) -> Iterator[tuple[str, str]]:
    """The names of such objects that are not what was written, and why."""
    yield from _trash(backend, identity)
    yield from partial.damaged(backend, identity)
    yield from lost.damaged(backend, identity)


def _trash(backend: Backend, identity: Identity) -> Iterator[tuple[str, str]]:
    for key, _ in backend.list(TRASH):
        if (name := parse_point(key)) is None:
            continue
        try:
            points.decode(identity, name, backend.get(key, 0, points.MAX_LENGTH + 1))
        except ObjectMissingError:
            continue
        except BadPointError as error:
            yield key, str(error)
