"""Packs being written: records are appended under one short lock, full packs are made durable in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore, Condition

from mover.errors import StoreIoError
from mover.store import pack
from mover.store.backend import Backend, Buffer, Upload
from mover.store.identity import Identity
from mover.store.names import DATA, MAX_SEQ, META, PackName
from mover.store.record import HEADER_LENGTH, Record

# At least so many full packs may be on their way; beyond that, sealing waits.
_CLOSING = 2


@dataclass(frozen=True)
class Written:
    """A durable pack and its table."""

    name: PackName
    size: int
    entries: bytes


class _Open:
    """A pack that takes records."""

    def __init__(self, name: PackName, upload: Upload, aead: int) -> None:
        self.name = name
        self.upload = upload
        self.header = pack.encode_header(name, int(time.time() * 1000), aead)
        self.entries: list[bytes] = []
        self.length = pack.HEADER_LENGTH
        upload.write([self.header])

    def append(self, records: Sequence[Record]) -> int:
        buffers: list[Buffer] = []
        offset = self.length
        for record in records:
            length = len(record.payload)
            buffers.append(record.header)
            buffers.append(record.payload)
            self.entries.append(pack.ENTRY.pack(record.id, offset, length, record.meta, record.check & 0xFFFFFFFF))
            offset += HEADER_LENGTH + length
        self.upload.write(buffers)
        added = offset - self.length
        self.length = offset
        return added

    def finish(self, identity: Identity) -> Written:
        entries = b"".join(self.entries)
        tail = pack.encode_tail(identity, self.header, entries, self.length)
        self.upload.write([tail])
        if not self.upload.commit():
            raise StoreIoError(f"{self.name.key} exists already", "two writers with one id: this cannot be chance")
        return Written(self.name, self.length + len(tail), entries)


class PackWriter:
    """The packs of one writer: one open for data, one for pages and blobs. `closed` is told of each durable pack."""

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        wid: bytes,
        target: int,
        closed: Callable[[Written], None],
        first_seq: int = 0,
    ) -> None:
        self._backend = backend
        self._identity = identity
        self._wid = wid
        self._target = target
        self._closed = closed
        self._open: dict[int, _Open] = {}
        self._next_seq = {DATA: first_seq, META: first_seq}
        self._ids: set[bytes] = set()
        self._lock = Condition()
        self._background = ThreadPoolExecutor(backend.tuning.uploads, "mover-pack")
        self._room = BoundedSemaphore(max(backend.tuning.uploads, _CLOSING))
        self._closing: set[_Open] = set()
        self._failure: BaseException | None = None

    @property
    def ids(self) -> set[bytes]:
        """The ids of records that are written but not in the index yet. Look, from any thread; do not change."""
        return self._ids

    @property
    def begun(self) -> int:
        """The first number that no pack of any kind has."""
        return max(self._next_seq.values())

    def append(
        self, kind: int, records: Sequence[Record], still_unknown: Callable[[Sequence[Record]], Sequence[Record]]
    ) -> tuple[list[bytes], int]:
        """Write those of `records` that no other thread has written meanwhile; `still_unknown` looks at the index.

        Returns the ids written and the bytes that took. Raises what the store raised for any earlier pack.
        """
        full = None
        with self._lock:
            self.require_working()
            fresh = still_unknown([record for record in records if record.id not in self._ids])
            if not fresh:
                return [], 0
            current = self._open.get(kind)
            try:
                if current is not None and len(current.entries) + len(fresh) > pack.MAX_RECORDS:
                    full, current = self._take(kind), None
                if current is None:
                    current = self._begin(kind)
                stored = current.append(fresh)
            except BaseException as error:
                # Part of it may be in the pack: nothing after it would be where the table says.
                self._failure = error
                raise
            ids = [record.id for record in fresh]
            self._ids.update(ids)
            if current.length >= self._target and full is None:
                full = self._take(kind)
        if full is not None:
            self._close(full)
        return ids, stored

    def indexed(self, ids: Sequence[bytes]) -> None:
        """These are in the index now."""
        with self._lock:
            self._ids.difference_update(ids)

    def flush(self) -> None:
        """Make everything appended so far durable. Raises what the store raises."""
        with self._lock:
            self.require_working()
            unfinished = [self._take(kind) for kind in list(self._open)]
            before = set(self._closing)
        for one in unfinished:
            self._close(one)
        with self._lock:
            self._lock.wait_for(lambda: self._closing.isdisjoint(before))
            self.require_working()

    def require_working(self) -> None:
        """Raise what the store raised for any earlier pack: nothing more can be written after that."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Abandon what is not full yet and end the background thread. Idempotent."""
        with self._lock:
            unfinished = list(self._open.values())
            self._open.clear()
            if self._failure is None:
                self._failure = StoreIoError("this writer is closed")
        self._background.shutdown(wait=True)
        for one in unfinished:
            one.upload.abort()

    def _begin(self, kind: int) -> _Open:
        seq = self._next_seq[kind]
        if seq > MAX_SEQ:
            raise StoreIoError("this run has written all the packs one run can")
        self._next_seq[kind] = seq + 1
        name = PackName(self._wid, seq, kind)
        upload = self._backend.create(name.key)
        try:
            self._open[kind] = _Open(name, upload, self._identity.cipher.number)
        except BaseException:
            upload.abort()
            raise
        return self._open[kind]

    def _take(self, kind: int) -> _Open:
        """Under the lock: this pack takes no more, and whoever flushes waits for it from now on."""
        full = self._open.pop(kind)
        self._closing.add(full)
        return full

    def _close(self, full: _Open) -> None:
        self._room.acquire()
        try:
            self._background.submit(self._finish, full)
        except BaseException as error:
            self._finished(full, error)
            raise

    def _finish(self, full: _Open) -> None:
        failure: BaseException | None = None
        try:
            if self._failure is None:
                self._closed(full.finish(self._identity))
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            failure = error
        self._finished(full, failure)

    def _finished(self, full: _Open, failure: BaseException | None) -> None:
        full.upload.abort()
        self._room.release()
        with self._lock:
            self._closing.discard(full)
            self._failure = self._failure or failure
            self._lock.notify_all()
