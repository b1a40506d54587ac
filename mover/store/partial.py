"""How far the fulls of a run are, noted down while it goes on, so that the next run can continue if this one is killed.

Nothing is kept alive by such a note: what it names may be gone by the time somebody reads it, and has to be looked up
like any other chunk that is not to be stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from mover.errors import StoreDamagedError
from mover.store import sealed_json
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import ID_LENGTH, ZERO_ID, Identity
from mover.store.index import IndexView, split_ids
from mover.store.names import PARTIAL, PartialName, parse_partial
from mover.store.page import FANOUT, MAX_LEVEL
from mover.store.pages import PageCache
from mover.store.tree import Begun, PlacedPage, Tree
from mover.store.walk import leaves_under

FORMAT = 1
MAX_LENGTH = 8 << 20
# Seconds. A full of the largest disk there is takes less, and it is only a matter of tidiness.
_STALE = 30 * 86400.0


class BadNoteError(ValueError):
    """These bytes are no note on how far a run is. The text says why."""


class _Format(msgspec.Struct, frozen=True):
    """All of a note that later versions keep."""

    format: int


class PartialDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk: what is in the store of its first `done` bytes is under `pages` (level, number, id), the rest zeros."""

    vdi_uuid: str
    snapshot_uuid: str
    size: int
    done: int
    pages: list[PlacedPage]


class PartialVm(msgspec.Struct, frozen=True, kw_only=True):
    """One VM on its way from its snapshot, which was taken at `created` (Unix time), into the store."""

    vm_uuid: str
    snapshot_uuid: str
    created: float
    disks: list[PartialDisk]


class PartialRun(msgspec.Struct, frozen=True, kw_only=True):
    """The VMs of a run that it has begun and not finished."""

    format: int = FORMAT
    job: str
    run: str
    vms: list[PartialVm]


def write(backend: Backend, identity: Identity, name: PartialName, run: PartialRun) -> None:
    """Put a note; one that would be too long to be read is none. Raises what the store raises."""
    data = sealed_json.encode(identity, name.key, run)
    if len(data) <= MAX_LENGTH:
        backend.put(name.key, data)


def read_all(backend: Backend, identity: Identity) -> Iterator[tuple[PartialName, PartialRun | None]]:
    """All notes, newest writer first; None for those that are damaged or from a later version."""
    for name in sorted(listed(backend), reverse=True):
        try:
            yield name, _decode(identity, name, backend.get(name.key, 0, MAX_LENGTH + 1))
        except ObjectMissingError:
            continue
        except BadNoteError:
            yield name, None


def listed(backend: Backend) -> Sequence[PartialName]:
    """The names of all notes."""
    return [name for key, _ in backend.list(PARTIAL) if (name := parse_partial(key)) is not None]


def stale(backend: Backend, now: float) -> list[PartialName]:
    """The notes that nobody will go on from, their writers having begun so long before `now` (Unix time)."""
    return [name for name in listed(backend) if int.from_bytes(name.wid[:6], "big") / 1000 < now - _STALE]


def put_again(cache: PageCache, view: IndexView, tree: Tree, done: Begun) -> int:
    """Put into `tree`, which is new, what a run that was killed has left; up to which chunk it is still all there.

    Nothing has kept it alive meanwhile: each chunk is looked up as if it had been read again.
    """
    known = 0
    # A page may be gone as well as a chunk: what is above has to be read again.
    with suppress(StoreDamagedError):
        for placed in sorted(done.pages, key=lambda page: page.number * FANOUT**page.level):
            for first, ids in leaves_under(cache, placed):
                wanted = split_ids(ids)[: max(done.chunks - first, 0)]
                there = view.contains([id for id in wanted if id != ZERO_ID])
                if first < known or not wanted or not all(there):
                    return known
                tree.put(first, b"".join(wanted))
                known = first + len(wanted)
                tree.advance(known)
        known = done.chunks
    return known


def damaged(backend: Backend, identity: Identity) -> Iterator[tuple[str, str]]:
    """The names of the notes that are not what was written, and why."""
    for name in listed(backend):
        try:
            _decode(identity, name, backend.get(name.key, 0, MAX_LENGTH + 1))
        except ObjectMissingError:
            continue
        except BadNoteError as error:
            yield name.key, str(error)


def _decode(identity: Identity, name: PartialName, data: bytes) -> PartialRun | None:
    """A note; None if it is of a later format. Raises `BadNoteError`."""
    if len(data) > MAX_LENGTH:
        raise BadNoteError(f"it has more than {MAX_LENGTH} bytes")
    try:
        about, _ = sealed_json.decode(identity, name.key, data, _Format)
        if about.format > FORMAT:
            return None
        run, _ = sealed_json.decode(identity, name.key, data, PartialRun)
    except ValueError as error:
        raise BadNoteError(str(error)) from error
    if not all(_is_sound(disk) for vm in run.vms for disk in vm.disks):
        raise BadNoteError("it holds what cannot be")
    return run


def _is_sound(disk: PartialDisk) -> bool:
    levels = range(MAX_LEVEL + 1)
    return 0 <= disk.done <= disk.size < 1 << 63 and all(
        page.level in levels and 0 <= page.number < FANOUT**MAX_LEVEL and len(page.id) == ID_LENGTH
        for page in disk.pages
    )
