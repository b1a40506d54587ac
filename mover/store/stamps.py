"""What is noted down beside each restore point: that it was committed, and when it was last found whole.

An object in `scrub/` for each, whose name says it all. The content is the point's id, and a checksum over the name and
that id, so that nobody else's word is taken for it. The newest one of a point counts, but for those that are of a time
to come: a clock that ran ahead would keep a point from being checked until then.

A prune that gives a point up removes its stamps before it removes the point from the trash. So a stamp whose point is
nowhere says that the point is missing, and one of another id that another point stands in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mover.store.at_once import at_once
from mover.store.backend import Backend, ObjectMissingError
from mover.store.cipher import BadSealError
from mover.store.identity import ID_LENGTH, Identity
from mover.store.names import SCRUB, PointName
from mover.store.point import FENCE, Point

_KEY = re.compile(r"scrub/([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,11})\.([fd])")
_POINT_ID = 16
# Sealed or not.
_MAX_LENGTH = 256
# By so many seconds clocks may differ.
_APART = 86400


class Stamp(NamedTuple):
    """Found whole at `time`, in Unix seconds (0: committed, not checked yet); `deep` if all was decompressed."""

    time: int
    deep: bool


COMMITTED = Stamp(0, deep=False)


class Misfit(NamedTuple):
    """A stamp that does not go with the points there are.

    `key` is its name, `object` what is at fault and `reason` why, `point` the point's id, empty if that is not known.
    """

    key: str
    object: str
    reason: str
    point: str


def _of_time_to_come(stamp: Stamp, now: float) -> bool:
    return stamp.time > now + _APART


def put_stamp(backend: Backend, identity: Identity, name: PointName, id: str, stamp: Stamp) -> str:
    """Note it down; the name of the object. Raises what the store raises."""
    key = f"{SCRUB}{name.wid.hex()}.{name.number}.{stamp.time}.{'d' if stamp.deep else 'f'}"
    backend.put(key, identity.cipher.seal(key, _content(identity, key, id)))
    return key


def write_stamps(backend: Backend, identity: Identity, points: Iterable[Point], stamp: Stamp) -> None:
    """Note down that these points were found whole now, at the time of `stamp`, in place of what was noted before.

    Raises what the store raises.
    """
    before = _listed(backend)
    for point in points:
        key = put_stamp(backend, identity, point.name, point.id, stamp)
        for old, noted in before.get(point.name, ()):
            # One that was deep stays until there is a newer one that is; one that does not fit is evidence.
            superseded = noted.time <= stamp.time and (stamp.deep or not noted.deep)
            useless = superseded or _of_time_to_come(noted, stamp.time)
            if old != key and useless and _read(backend, identity, old) == point.id:
                backend.delete(old)
        if _is_gone(backend, point.name):
            # It was given up meanwhile, and its stamps were removed before this one was put.
            backend.delete(key)


def read_stamps(
    backend: Backend, identity: Identity, points: Iterable[Point], *, now: float, deep: bool
) -> dict[PointName, Stamp]:
    """The newest stamp of each point; with `deep` only those count that were.

    Others' and damaged ones do not, nor do those that are later than `now` by more than clocks may differ.
    """
    listed = _listed(backend)
    found: dict[PointName, Stamp] = {}
    for point in points:
        for key, stamp in sorted(listed.get(point.name, ()), key=lambda pair: pair[1].time, reverse=True):
            counts = (stamp.deep or not deep) and not _of_time_to_come(stamp, now)
            if counts and _read(backend, identity, key) == point.id:
                found[point.name] = stamp
                break
    return found


def remove_stamps(backend: Backend, names: Iterable[PointName]) -> None:
    """Remove the stamps of points that are given up, durably. Raises what the store raises."""
    gone = frozenset(names)
    if not gone:
        return
    for name, noted in _listed(backend).items():
        if name in gone:
            for key, _ in noted:
                backend.delete(key, durable=True)


def misfits(
    backend: Backend, identity: Identity, points: Sequence[Point], unreadable: frozenset[str]
) -> Iterator[Misfit]:
    """The stamps that are damaged, or whose point is missing or another one.

    `points` are those that can be read, `unreadable` the names of the objects of others, listed before this is called.
    """
    ids = {point.name: point.id for point in points}
    listed = [(name, key) for name, noted in _listed(backend).items() for key, _ in noted]
    told: set[PointName] = set()
    contents = at_once(backend.tuning, lambda pair: _read(backend, identity, pair[1]), listed)
    for (name, key), id in zip(listed, contents, strict=True):
        if id is None:
            continue
        if not id:
            yield Misfit(key, key, "it is not what was written", "")
        elif name in ids and ids[name] != id:
            yield Misfit(key, name.key, f"another restore point stands in its place: it was committed as {id}", id)
        elif name not in ids and name.key not in unreadable and name not in told and _is_lost(backend, name, key):
            told.add(name)
            yield Misfit(key, name.key, f"the restore point {id} is missing: it was committed, and not forgotten", id)


def _content(identity: Identity, key: str, id: str) -> bytes:
    return id.encode() + identity.checksum(key.encode(), id.encode())


def _read(backend: Backend, identity: Identity, key: str) -> str | None:
    """The id that a stamp is of; empty if it is damaged or somebody else's, None if it is gone."""
    try:
        content = identity.cipher.open(key, backend.get(key, 0, _MAX_LENGTH))
    except ObjectMissingError:
        return None
    except BadSealError:
        return ""
    id = content[:_POINT_ID].decode("ascii", "replace")
    whole = len(content) == _POINT_ID + ID_LENGTH and content == _content(identity, key, id)
    return id if whole else ""


def _is_gone(backend: Backend, name: PointName) -> bool:
    """Whether a point is neither there nor in the trash; in this order, which is that of forgetting."""
    for key in (name.key, name.trash_key):
        try:
            if backend.get(key, 0, len(FENCE) + 1) != FENCE:
                return False
        except ObjectMissingError:
            continue
    return True


def _is_lost(backend: Backend, name: PointName, stamp: str) -> bool:
    """Whether a point is gone that was not given up: then its stamp would have been removed before the trash was."""
    if not _is_gone(backend, name):
        return False
    try:
        backend.get(stamp, 0, 1)
    except ObjectMissingError:
        return False
    return True


def _listed(backend: Backend) -> dict[PointName, list[tuple[str, Stamp]]]:
    found: dict[PointName, list[tuple[str, Stamp]]] = {}
    for key, _ in backend.list(SCRUB):
        if (match := _KEY.fullmatch(key)) is not None:
            name = PointName(bytes.fromhex(match[1]), int(match[2]))
            found.setdefault(name, []).append((key, Stamp(int(match[3]), match[4] == "d")))
    return found
