"""When a restore point was last found whole: an object in `scrub/` for each, whose name says it all.

The content is a checksum of the name, so that nobody else's word is taken for it. The newest one of a point counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from mover.store.backend import Backend, ObjectMissingError
from mover.store.cipher import BadSealError
from mover.store.identity import Identity
from mover.store.names import SCRUB, PointName

_KEY = re.compile(r"scrub/([0-9a-f]{32})\.([0-9]{1,9})\.([0-9]{1,12})\.([fd])")


class Stamp(NamedTuple):
    """Found whole at `time` (Unix, seconds); `deep` if everything was decompressed."""

    time: int
    deep: bool


def write_stamps(backend: Backend, identity: Identity, names: Iterable[PointName], stamp: Stamp) -> None:
    """Note down that these points were found whole, in place of what was noted before. Raises what the store raises."""
    before = _listed(backend)
    for name in names:
        key = f"{SCRUB}{name.wid.hex()}.{name.number}.{stamp.time}.{'d' if stamp.deep else 'f'}"
        backend.put(key, identity.cipher.seal(key, identity.checksum(key.encode())))
        for old, noted in before.get(name, ()):
            # One that was deep stays until there is a newer one that is.
            if old != key and noted.time <= stamp.time and (stamp.deep or not noted.deep):
                backend.delete(old)


def read_stamps(backend: Backend, identity: Identity, *, deep: bool) -> dict[PointName, Stamp]:
    """The newest stamp of each point; with `deep` only those count that were. Others' and damaged ones do not."""
    found: dict[PointName, Stamp] = {}
    for name, noted in _listed(backend).items():
        for key, stamp in sorted(noted, key=lambda pair: pair[1].time, reverse=True):
            if (stamp.deep or not deep) and _is_ours(backend, identity, key):
                found[name] = stamp
                break
    return found


def remove_stale(backend: Backend, points: Iterable[PointName]) -> None:
    """Remove the stamps of points that are gone."""
    there = set(points)
    for name, noted in _listed(backend).items():
        if name not in there:
            for key, _ in noted:
                backend.delete(key)


def _listed(backend: Backend) -> dict[PointName, list[tuple[str, Stamp]]]:
    found: dict[PointName, list[tuple[str, Stamp]]] = {}
    for key, _ in backend.list(SCRUB):
        if (match := _KEY.fullmatch(key)) is not None:
            name = PointName(bytes.fromhex(match[1]), int(match[2]))
            found.setdefault(name, []).append((key, Stamp(int(match[3]), match[4] == "d")))
    return found


def _is_ours(backend: Backend, identity: Identity, key: str) -> bool:
    try:
        return identity.cipher.open(key, backend.get(key)) == identity.checksum(key.encode())
    except (ObjectMissingError, BadSealError):
        return False
