"""Checking packs: that they begin and end as they should, and that every record is what its checksum or id says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from errno import EIO
from typing import NamedTuple

import zstandard

from mover.errors import StoreIoError
from mover.store import pack, record
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import Identity
from mover.store.names import PackName
from mover.store.pack import BadPackError
from mover.store.record import BLOB, CHUNK, HEADER_LENGTH, MAX_STORED, PAGE, BadRecordError

READ_AT_ONCE = 4 << 20
GAP = 64 << 10


class Entry(NamedTuple):
    """A record to be checked, as a footer or the index describes it."""

    offset: int
    length: int
    meta: int
    id: bytes


@dataclass
class PackReport:
    """What is wrong with a pack: with itself (`reason`, empty if nothing), and with its records.

    `unread` says why, if some of it could not be read just now: it may be as good as ever.
    """

    name: PackName
    reason: str = ""
    bad: dict[bytes, str] = field(default_factory=dict)
    checked: int = 0
    missing: bool = False
    unread: str = ""

    def __str__(self) -> str:
        parts = [self.reason] if self.reason else []
        if self.bad:
            first = next(iter(self.bad.values()))
            parts.append(f"{len(self.bad)} of {self.checked} records are damaged, the first {first}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Scrub:
    """Checks packs of one store. Thread-safe."""

    backend: Backend
    identity: Identity
    deep: bool

    def pack(self, name: PackName, size: int, indexed: Callable[[PackName], Sequence[Entry]]) -> PackReport:
        """Check a whole pack of `size` bytes.

        Its records are checked by its footer, or where that is damaged as far as the index knows them.
        """
        report = PackReport(name)
        try:
            entries: Sequence[Entry] = self.table(name, size)
        except ObjectMissingError:
            return self._missing(report, indexed(name))
        except (BadPackError, StoreIoError) as error:
            report.reason, entries = str(error), indexed(name)
            report.unread = "" if is_rot(error) else str(error)
        return self._with_records(report, entries)

    def records(self, name: PackName, entries: Sequence[Entry]) -> PackReport:
        """Check only some records of a pack."""
        return self._with_records(PackReport(name), entries)

    def _with_records(self, report: PackReport, entries: Sequence[Entry]) -> PackReport:
        try:
            self._records(report, entries)
        except ObjectMissingError:
            return self._missing(report, entries)
        return report

    def table(self, name: PackName, size: int) -> list[Entry]:
        """What the footer of a pack of `size` bytes lists.

        Raises `BadPackError`, `ObjectMissingError`, `StoreIoError`.
        """
        header = self.backend.get(name.key, 0, pack.HEADER_LENGTH)
        if pack.parse_header(header) != name:
            raise BadPackError("its header is that of another pack")
        trailer = self.backend.get(name.key, max(size - pack.TRAILER_LENGTH, 0), pack.TRAILER_LENGTH)
        start, _ = pack.parse_trailer(trailer, size)
        footer = pack.parse_footer(self.identity, header, self.backend.get(name.key, start, size - start), size)
        rows = pack.ENTRY.iter_unpack(footer.entries)
        return [Entry(offset, length, meta, id) for id, offset, length, meta, _ in rows]

    def _missing(self, report: PackReport, entries: Sequence[Entry]) -> PackReport:
        report.reason, report.missing = "it is missing", True
        report.bad = dict.fromkeys((entry.id for entry in entries), "is missing")
        report.checked = len(entries)
        return report

    def _records(self, report: PackReport, entries: Sequence[Entry]) -> None:
        decompressor = record.decompressor()
        buffer = memoryview(bytearray(READ_AT_ONCE + MAX_STORED + HEADER_LENGTH))
        report.checked = len(entries)
        rotten = 0
        waiting = deque(runs(entries))
        while waiting:
            run = waiting.popleft()
            start = run[0].offset
            try:
                got = self.backend.read_into(report.name.key, start, buffer[: end_of(run) - start])
            except StoreIoError as error:
                if is_rot(error) and len(run) > 1:
                    waiting.extendleft([entry] for entry in reversed(run))  # only some of them may be in the bad place
                    continue
                if is_rot(error):
                    rotten += 1
                else:
                    report.unread = str(error)
                report.bad.update((entry.id, f"cannot be read: {error}") for entry in run)
                continue
            for entry in run:
                at = entry.offset - start
                try:
                    self._check(entry, buffer[at : min(at + HEADER_LENGTH + entry.length, got)], decompressor)
                except BadRecordError as error:
                    report.bad[entry.id] = f"at byte {entry.offset}: {error}"
        if rotten and rotten == len(entries):
            report.unread = "nothing of it can be read"

    def _check(self, entry: Entry, stored: memoryview, decompressor: zstandard.ZstdDecompressor) -> None:
        """Raise `BadRecordError` if this is not the record that `entry` describes."""
        payload = record.payload(stored, entry.id, entry.meta)
        if not record.check_sum(stored):
            raise BadRecordError("its checksum does not match")
        kind = entry.meta >> 24 & 15
        identify = {CHUNK: self.identity.chunk_id, PAGE: self.identity.page_id, BLOB: self.identity.blob_id}
        if kind not in identify:
            raise BadRecordError(f"its kind {kind} is unknown")
        if self.deep:
            plain = record.expand(entry.id, payload, entry.meta, decompressor, self.identity.cipher)
            if identify[kind](plain) != entry.id:
                raise BadRecordError("its content is not what its id says")


def is_rot(error: BadPackError | StoreIoError) -> bool:
    """Whether this is how the medium is, and not a failure to get at it, which may pass."""
    cause = error.__cause__
    return isinstance(error, BadPackError) or (isinstance(cause, OSError) and cause.errno == EIO)


def end_of(run: Sequence[Entry]) -> int:
    """Where the last byte of records that are read together is."""
    return max(entry.offset + HEADER_LENGTH + min(entry.length, MAX_STORED) for entry in run)


def runs(entries: Sequence[Entry], gap: int = GAP) -> Iterator[list[Entry]]:
    """Neighbours that are read together, with gaps of up to so many bytes between them."""
    run: list[Entry] = []
    end = 0
    for entry in sorted(entries):
        if run and (entry.offset - end > gap or entry.offset - run[0].offset > READ_AT_ONCE):
            yield run
            run = []
        run.append(entry)
        end = entry.offset + HEADER_LENGTH + min(entry.length, MAX_STORED)
    if run:
        yield run
