"""A restore point: the record whose existence is the commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from mover.store import sealed_json
from mover.store.identity import ID_LENGTH, Identity
from mover.store.names import PointName

FORMAT = 1
MAX_LENGTH = 1 << 20
# What stands under a writer's next commit number once a prune has given the writer up.
FENCE = b"FENCE\n"
# The position, among a point's disks, of what the VM had in memory.
MEMORY = "memory"
# Unix time, 1970 to the end of the year 9998: what any clock may say, and every time zone has a date for.
_MOMENTS = (0.0, 253370764800.0)
# Of what is counted in bytes.
_MOST = 1 << 63


class BadPointError(Exception):
    """These bytes are no restore point. The text says why."""


class LaterPointError(BadPointError):
    """These bytes are a restore point of a later format, and whole. Only what it needs is not known here."""


class _Format(msgspec.Struct, frozen=True):
    """All of a point that later formats keep."""

    format: int = FORMAT


class PointDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk of a restore point: `root` and `size` (bytes) are its content, the rest says how it came about.

    `changed` is bytes of chunks that differ from the point before, `read` what crossed the wire, `zero`, `known` and
    `new` what became of the chunks read, `stored` what the packs grew by. `snapshot_uuid` is the snapshot of this
    state, if an incremental can start from it; `base_snapshot` that of an earlier state, if this one was read as what
    differs from it and the next incremental will be, too.
    """

    position: str
    name: str
    vdi_uuid: str
    size: int
    root: bytes
    mode: Literal["full", "incremental"] = "full"
    reason: str | None = None
    snapshot_uuid: str | None = None
    base_snapshot: str | None = None
    changed: int = 0
    read: int = 0
    zero: int = 0
    known: int = 0
    new: int = 0
    stored: int = 0
    seconds: float = 0.0


class CopiedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Of which point this one is a copy: the id of its store, and its own there."""

    store: str
    point: str


class PointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One VM at one moment (`created`, Unix time). `metadata` is the id of a blob, empty if there is none.

    `order` stands for `created` where points are put in order, if a wrong clock has made that earlier than the VM's
    point before it.

    Fields that a later version adds are ignored by this one; a change that must not be ignored raises `format`.
    """

    format: int = FORMAT
    vm_uuid: str
    vm_name: str
    created: float
    order: float | None = None
    job: str = ""
    run: str = ""
    schedule: str | None = None
    strategy: str = "cbt"
    snapshot_uuid: str | None = None
    metadata: bytes = b""
    copied_from: CopiedFrom | None = None
    disks: list[PointDisk]


@dataclass(frozen=True)
class Point:
    """A committed restore point. `id` is 16 hex digits made of its content; people may shorten it."""

    id: str
    name: PointName
    record: PointRecord

    @property
    def place(self) -> tuple[float, PointName]:
        """Sorts points as they were made, the oldest first."""
        return self.record.order or self.record.created, self.name


def encode(identity: Identity, name: PointName, record: PointRecord) -> bytes:
    """JSON with sorted keys, then 32 bytes of checksum, sealed as `name`.

    Raises `ValueError` if it is larger than a point may be.
    """
    if problem := _problem(record):
        raise ValueError(problem)
    sealed = sealed_json.encode(identity, name.key, record)
    if len(sealed) > MAX_LENGTH:
        raise ValueError(f"a restore point has at most {MAX_LENGTH} bytes, this one {len(sealed)}")
    return sealed


def decode(identity: Identity, name: PointName, data: bytes) -> Point:
    """Check and read a restore point. Raises `BadPointError`, of which `LaterPointError` means no damage."""
    if not ID_LENGTH < len(data) <= MAX_LENGTH:
        raise BadPointError(f"it has {len(data)} bytes")
    try:
        body, check = sealed_json.unseal(identity, name.key, data)
        # By itself: nothing else has to be as it is here.
        format = sealed_json.parse(body, _Format).format
        if format > FORMAT:
            raise LaterPointError(f"it was made by a newer mover, in format {format}")
        record = sealed_json.parse(body, PointRecord)
    except ValueError as error:
        raise BadPointError(str(error)) from error
    if problem := _problem(record):
        raise BadPointError(problem)
    return Point(check[:8].hex(), name, record)


def _problem(record: PointRecord) -> str | None:
    """What cannot be, if anything. A checksum does not rule it out: in a plain store anyone can make one."""
    if len(record.metadata) not in (0, ID_LENGTH):
        return "the metadata's id has not the length of an id"
    earliest, end = _MOMENTS
    if not all(earliest <= moment < end for moment in (record.created, record.order or 0.0)):
        return "it was made in no year from 1970 to 9998"
    for disk in record.disks:
        if len(disk.root) != ID_LENGTH or not 0 <= disk.size < _MOST:
            return "a disk has no proper root"
        if any(
            abs(count) >= _MOST for count in (disk.changed, disk.read, disk.zero, disk.known, disk.new, disk.stored)
        ):
            return "a disk has counts that cannot be"
    return None
