"""Copying records into new packs, so that the ones they are in can be deleted.

Nothing is copied unchecked: a record's header and checksum are looked at, and what is deep is decompressed and compared
with its id. A prune has no need of that: it copies byte for byte, and who reads a record does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock

from mover.store import pack
from mover.store import record as records
from mover.store.backend import Backend
from mover.store.identity import Identity
from mover.store.names import PackName, SegmentName
from mover.store.pack_writer import PackWriter, Written
from mover.store.publish import PUBLISH_RECORDS, publish_written
from mover.store.record import BLOB, CHUNK, HEADER_LENGTH, MAX_STORED, PAGE, BadRecordError, Record
from mover.store.scrub import GAP, READ_AT_ONCE, Entry, end_of, runs


class Copier:
    """Copies records under the name `wid`, and lists them in index segments with these `numbers`.

    They are listed as they are copied, some at a time: what waits to be listed is held in memory.
    """

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        wid: bytes,
        target: int,
        numbers: Iterator[int],
        first_seq: int = 0,
        *,
        deep: bool,
    ) -> None:
        self.copied = 0
        self.bytes = 0
        self.damaged: dict[PackName, str] = {}
        self.damaged_ids: set[bytes] = set()
        self._backend = backend
        self._identity = identity
        self._wid = wid
        self._deep = deep
        self._numbers = numbers
        self._unlisted: list[Written] = []
        self._lock = Lock()
        self._packs = PackWriter(backend, identity, wid, target, self._pack_written, first_seq)
        self._decompressor = records.decompressor()
        self._identify = {CHUNK: identity.chunk_id, PAGE: identity.page_id, BLOB: identity.blob_id}

    def copy(self, moving: Iterable[tuple[PackName, Sequence[Entry]]]) -> None:
        """Copy these records. One that is not what was stored gets into `damaged_ids`, and its pack into `damaged`.

        Raises `ObjectMissingError` if a pack is gone: another prune has moved what it held.
        """
        buffer = memoryview(bytearray(READ_AT_ONCE + MAX_STORED + HEADER_LENGTH))
        for name, entries in moving:
            # What is between the records of a damaged pack may be what cannot be read.
            for run in runs(entries, 0 if self._deep else GAP):
                start = run[0].offset
                got = self._backend.read_into(name.key, start, buffer[: end_of(run) - start])
                self._append(name, run, buffer[:got])
                self._list(at_least=PUBLISH_RECORDS)

    def finish(self) -> None:
        """Make all that was copied durable, and list it."""
        self._packs.flush()
        self._list(at_least=1)

    def close(self) -> None:
        """End the background thread."""
        self._packs.stop()

    @property
    def packs(self) -> int:
        """How many packs were begun, of any kind: the first number that is free."""
        return self._packs.begun

    def _list(self, *, at_least: int) -> None:
        """List the packs that are durable, if they have so many records that are not listed."""
        with self._lock:
            if sum(len(one.entries) for one in self._unlisted) < at_least * pack.ENTRY_LENGTH:
                return
            packs, self._unlisted = self._unlisted, []
        publish_written(self._backend, self._identity, SegmentName(0, self._wid, next(self._numbers)), packs)

    def _append(self, name: PackName, run: Sequence[Entry], stored: memoryview) -> None:
        fresh: list[Record] = []
        start = run[0].offset
        for entry in run:
            at = entry.offset - start
            try:
                fresh.append(self._check(entry, stored[at : at + HEADER_LENGTH + entry.length]))
            except BadRecordError as error:
                self.damaged[name] = f"at byte {entry.offset}: {error}"
                self.damaged_ids.add(entry.id)
        written, length = self._packs.append(name.kind, fresh, lambda unknown: unknown)
        self.copied += len(written)
        self.bytes += length

    def _check(self, entry: Entry, stored: memoryview) -> Record:
        payload = records.payload(stored, entry.id, entry.meta)
        kind = entry.meta >> 24 & 15
        if kind not in self._identify or not records.check_sum(stored):
            raise BadRecordError("its checksum does not match")
        if self._deep:
            plain = records.expand(entry.id, payload, entry.meta, self._decompressor, self._identity.cipher)
            if self._identify[kind](plain) != entry.id:
                raise BadRecordError("its content is not what its id says")
        return Record(entry.id, entry.meta, bytes(payload), records.stored_check(stored))

    def _pack_written(self, written: Written) -> None:
        with self._lock:
            self._unlisted.append(written)
        # Of a record one place is marked, so nothing is copied twice.
        self._packs.indexed([id for id, *_ in pack.ENTRY.iter_unpack(written.entries)])
