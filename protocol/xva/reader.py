"""Reading an XVA as it streams by, strictly forwards and as strictly as the servers import one.

`ova.xml` first; then the disks in the order of their references as text, each in blocks that rise in number: one block
of zeros is left out where a number is; members of no length keep the connection alive, and take a number, too. After
each block its checksum, which is the caller's to verify, because that takes a worker thread. Then two records of zeros.
Source: xen-api ocaml/xapi/stream_vdi.ml, import.ml.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from protocol.errors import FormatError
from protocol.forward import Bytes, Give, Pass, Plan, Scan, Take
from protocol.xva.check import KINDS, LENGTHS, Check, digest_of, parse_digest
from protocol.xva.ova import MAX_OVA, Ova, disks_of, export_version, parse_ova, parse_value
from protocol.xva.tar import RECORD, Member, fail, parse_header

# Every server there was writes blocks of this many bytes.
BLOCK = 1 << 20

_OVA = "ova.xml"
_TABLE = "checksum.xml"
_BLOCK_NAME = re.compile(r"([^/]{1,80})/([0-9]{8})")
_ZEROS = bytes(RECORD)


class OvaXml(NamedTuple):
    """The metadata, as it came and parsed."""

    xml: bytes
    ova: Ova


class Data(NamedTuple):
    """Bytes of a disk from its byte `offset` on. The view is of what was fed."""

    disk: str
    offset: int
    view: memoryview


class BlockEnd(NamedTuple):
    """All of a block has come. `check` is to be verified; archives of old have none there, but a table at the end.

    `offset` counts in the disk, `position` in the archive; `name` is the block's in the archive.
    """

    disk: str
    offset: int
    length: int
    check: Check | None
    name: str
    position: int


class DiskEnd(NamedTuple):
    """The last block of a disk of `end` bytes has come."""

    disk: str
    end: int


class Checksums(NamedTuple):
    """The table at the end of an archive of old: the SHA-1 of each block by its name, 40 hexadecimal digits."""

    by_name: dict[str, str]


class End(NamedTuple):
    """Everything has come, the end of the tar included. `length` is that of the whole archive in bytes."""

    length: int


Event = OvaXml | Data | BlockEnd | DiskEnd | Checksums | End
_Step = Take | Pass[Event] | Give[Event]
_Reading = Generator[_Step, bytes, Member | None]


def verify_block(block: Bytes, end: BlockEnd) -> None:
    """Raise `FormatError` unless `block` has the checksum that followed it. A worker thread's work."""
    if end.check is not None and not end.check.matches(block):
        fail(f"the {end.check.kind} of byte {end.offset} ff. of disk {end.disk} does not match", end.position)


class XvaReader:
    """Takes an archive, uncompressed, piece by piece and says what is in it.

    With `disks=False` it is an export of the metadata, which has no disks. Memory is bounded by the limit for ova.xml
    and the piece that is fed. After a `FormatError` it is of no more use.
    """

    def __init__(self, *, disks: bool = True) -> None:
        self._with_disks = disks
        self._scan: Scan[Event] = Scan("XVA", self._plan)

    def feed(self, data: Bytes) -> Iterator[Event]:
        """Take the next bytes; exhaust the iterator before feeding more. Raises `FormatError`."""
        return self._scan.feed(data)

    def coming(self) -> tuple[int, int] | None:
        """Where on its disk the content lies that the next bytes are, and how many they are; None if they are none."""
        coming = self._scan.coming()
        return (coming[0].offset, coming[1]) if coming and isinstance(coming[0], Data) else None

    def finish(self) -> None:
        """Say that the stream is over. Raises `FormatError` if it was cut short."""
        self._scan.finish()

    def _plan(self, scan: Scan[Event]) -> Plan[Event]:
        member = yield from _member(scan)
        if member is None or member.name != _OVA:
            fail(f"it begins with {_named(member)}, not with {_OVA}", 0)
        xml = yield from _content(member, MAX_OVA)
        with _within(member):
            ova = parse_ova(xml)
            version = export_version(ova)
            disks = {disk.ref: disk for disk in disks_of(ova)} if self._with_disks else {}
        yield Give(OvaXml(xml, ova))
        missing = {disk.ref for disk in disks.values() if disk.expected and disk.size}
        member = yield from _member(scan)
        before = ""
        while member is not None and member.name != _TABLE:
            ref, _ = _block_name(member)
            if ref <= before:
                fail(f"disk {ref} comes after disk {before}", member.offset)
            if ref not in disks:
                fail(f"{member.name!r} is of no disk that {_OVA} names", member.offset)
            member = yield from _disk(scan, ref, disks[ref].size, member, inline=version > 0)
            missing.discard(ref)
            before = ref
        if missing:
            fail(f"disk {min(missing)} is missing", scan.position - RECORD if member is None else member.offset)
        if self._with_disks and version < 2:
            member = yield from _table(scan, member)
        if member is not None:
            fail(f"{member.name!r} follows the last disk", member.offset)
        yield Give(End(scan.position))


def _disk(scan: Scan[Event], ref: str, size: int, member: Member | None, *, inline: bool) -> _Reading:
    """One disk; returns the member after it."""
    last, unit, offset = -1, 0, 0
    while offset < size:
        if member is None or not member.name.startswith(f"{ref}/"):
            fail(f"{_named(member)} comes after {offset} of the {size} bytes of disk {ref}", scan.position - RECORD)
        _, number = _block_name(member)
        if number <= last:
            fail(f"block {number} of disk {ref} comes after block {last}", member.offset)
        if last < 0 and (number or not member.size):
            fail(f"the first block of disk {ref} is missing", member.offset)
        unit = unit or member.size
        offset += (number - last - 1) * unit
        _check_length(member, ref, offset, unit, size)
        if member.size:
            yield Pass(member.size, partial(_data, ref, offset))
            if member.padding:
                yield Take(member.padding)
        check = (yield from _check(scan, member)) if inline else None
        if member.size:
            yield Give(BlockEnd(ref, offset, member.size, check, member.name, member.offset))
        elif check and check.digest != digest_of(check.kind, b""):
            fail(f"the checksum of {member.name!r}, which is empty, does not match", member.offset)
        last, offset = number, offset + member.size
        member = yield from _member(scan)
    yield Give(DiskEnd(ref, size))
    return member


def _check_length(member: Member, ref: str, offset: int, unit: int, size: int) -> None:
    end = offset + member.size
    if member.size > BLOCK:
        fail(f"a block of {member.size} bytes; {BLOCK} is the limit", member.offset)
    if offset >= size or end > size:
        fail(f"block {member.name!r} ends at byte {end} of disk {ref}, which has {size}", member.offset)
    if member.size not in (0, unit) and end < size:
        fail(f"block {member.name!r} has {member.size} bytes and is not the disk's last", member.offset)


def _data(ref: str, offset: int, start: int, view: memoryview) -> Event:
    return Data(ref, offset + start, view)


def _member(scan: Scan[Event]) -> _Reading:
    """The next header; None for the end of the tar."""
    offset = scan.position
    header = yield Take(RECORD)
    if header != _ZEROS:
        return parse_header(header, offset)
    if (yield Take(RECORD)) != _ZEROS:
        fail("one record of zeros, and no second one", offset)
    return None


def _content(member: Member, limit: int) -> Generator[_Step, bytes, bytes]:
    if member.size > limit:
        fail(f"{member.name} has {member.size} bytes; {limit} are the limit", member.offset)
    return (yield Take(member.size + member.padding))[: member.size]


def _check(scan: Scan[Event], block: Member) -> Generator[_Step, bytes, Check]:
    """The checksum member of a block."""
    member = yield from _member(scan)
    extension = member.name.removeprefix(block.name) if member and member.name.startswith(block.name) else ""
    kind = KINDS.get(extension)
    if member is None or kind is None:
        fail(f"{_named(member)} instead of the checksum of {block.name!r}", scan.position - RECORD)
    text = yield from _content(member, LENGTHS[kind])
    return Check(kind, parse_digest(kind, text, member.offset))


def _table(scan: Scan[Event], member: Member | None) -> _Reading:
    if member is None or member.name != _TABLE:
        fail(f"{_named(member)} instead of {_TABLE}", scan.position - RECORD)
    xml = yield from _content(member, MAX_OVA)
    with _within(member):
        table = parse_value(xml)
    if not isinstance(table, dict) or not all(isinstance(digest, str) for digest in table.values()):
        fail(f"{_TABLE} is no table of checksums", member.offset)
    yield Give(Checksums(table))
    return (yield from _member(scan))


@contextmanager
def _within(member: Member) -> Iterator[None]:
    """An error of the content of `member` names the place in the archive."""
    try:
        yield
    except FormatError as error:
        fail(f"{member.name}: {error.reason}", member.offset + RECORD + (error.offset or 0))


def _block_name(member: Member) -> tuple[str, int]:
    match = _BLOCK_NAME.fullmatch(member.name)
    if not match:
        fail(f"{member.name!r} is no name of a block", member.offset)
    return match[1], int(match[2])


def _named(member: Member | None) -> str:
    return repr(member.name) if member else "the end"
