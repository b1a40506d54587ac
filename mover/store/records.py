"""Reading records by id: find them, read neighbours together, check that each is what its id says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import local
from typing import NamedTuple

import zstandard

from mover.errors import StoreDamagedError
from mover.store import record as records
from mover.store.at_once import at_once
from mover.store.backend import Backend, ObjectMissingError, Tuning
from mover.store.identity import Identity
from mover.store.index import Index, Location
from mover.store.read_ahead import ReadAhead
from mover.store.record import BLOB, CHUNK, HEADER_LENGTH, PAGE, BadRecordError

# So often a record is looked for again because the pack it was in has gone.
_TRIES = 3

Take = Callable[[int, "bytes | memoryview"], None]


class Wanted(NamedTuple):
    """A record to be read: where it is, its id, and the caller's number for it."""

    at: Location
    id: bytes
    number: int


class _Context(local):
    """What one thread needs to read: a decompressor, a buffer that grows to the longest run."""

    def __init__(self) -> None:
        self.decompressor: zstandard.ZstdDecompressor = records.decompressor()
        self.buffer = memoryview(bytearray(256 << 10))

    def room(self, length: int) -> memoryview:
        if len(self.buffer) < length:
            self.buffer = memoryview(bytearray(length))
        return self.buffer[:length]


class Records:
    """The records of one store. Any thread may read."""

    def __init__(self, backend: Backend, identity: Identity, index: Index, pack_target: int) -> None:
        self._backend = backend
        self._tuning = backend.tuning
        self._ahead = ReadAhead(backend, pack_target) if backend.tuning.requests > 1 else None
        self._index = index
        self._context = _Context()
        self._cipher = identity.cipher
        self._identify = {CHUNK: identity.chunk_id, PAGE: identity.page_id, BLOB: identity.blob_id}

    def id_of(self, data: bytes | memoryview, kind: int) -> bytes:
        """The id of the record that has these plain bytes, stored or not."""
        return self._identify[kind](data)

    def get(self, id: bytes, kind: int) -> bytes:
        """The plain bytes of one record. Raises `StoreDamagedError`."""
        found: list[bytes] = []
        self.read([id], kind, lambda _, data: found.append(bytes(data)))
        return found[0]

    def get_many(self, ids: Sequence[bytes], kind: int) -> list[bytes]:
        """The plain bytes of several, in order."""
        found: list[bytes] = [b""] * len(ids)

        def take(number: int, data: bytes | memoryview) -> None:
            found[number] = bytes(data)

        self.read(ids, kind, take)
        return found

    def read(self, ids: Sequence[bytes], kind: int, take: Take) -> None:
        """Call `take(number, plain bytes)` for each of `ids`, in the order that reads best.

        The bytes are valid during the call only. Raises `StoreDamagedError` naming the record or its pack.
        """
        self._read(ids, kind, take, _TRIES)

    def _read(self, ids: Sequence[bytes], kind: int, take: Take, tries: int) -> None:
        wanted = sorted(
            Wanted(place, id, number) for number, (place, id) in enumerate(zip(self._locate(ids), ids, strict=True))
        )
        runs = list(_runs(wanted, self._tuning))
        fetched = map(self._fetch, runs) if len(runs) == 1 else at_once(self._tuning, self._fetch, runs)
        for run, stored in zip(runs, fetched, strict=True):
            self._take_run(run, stored, kind, take, tries)

    @property
    def far(self) -> bool:
        """Whether asking costs more than reading."""
        return self._ahead is not None

    def close(self) -> None:
        """Read nothing ahead any more."""
        if self._ahead is not None:
            self._ahead.close()

    def _locate(self, ids: Sequence[bytes]) -> list[Location]:
        places = self._index.view.locate(ids)
        for _ in range(_TRIES):
            if None not in places:
                break
            # Another writer may have published it since the index was loaded, or a prune has moved it.
            places = self._index.reload().locate(ids)
        located = [place for place in places if place is not None]
        if len(located) < len(ids):
            missing = ids[places.index(None)]
            damaged = "".join(f"; {key}: {reason}" for key, reason in self._index.view.damaged)
            pack = self._index.view.whereabouts(missing)
            where = f"; {pack.key} should, but is missing or has a wrong length" if pack is not None else ""
            raise StoreDamagedError(
                f"no usable pack of {self._backend.location} holds the record {missing.hex()}{where}{damaged}",
                "`mover verify` names every restore point that needs it",
            )
        return located

    def _fetch(self, run: Sequence[Wanted]) -> memoryview | ObjectMissingError:
        """The bytes of a run, as far as they are there; valid until this thread's next call."""
        start = run[0].at.offset
        if run[0].at.length > records.MAX_STORED:
            raise StoreDamagedError(
                f"the index of {self._backend.location} is damaged: it gives the record {run[0].id.hex()} "
                f"{run[0].at.length} bytes",
                "bring it back from a copy of the store",
            )
        last = max(run, key=lambda one: one.at.offset)
        length = last.at.offset + HEADER_LENGTH + last.at.length - start
        key = run[0].at.pack.key
        try:
            if self._ahead is not None:
                return memoryview(self._ahead.get(key, start, length))
            room = self._context.room(length)
            return room[: self._backend.read_into(key, start, room)]
        except ObjectMissingError as error:
            return error

    def _take_run(
        self, run: Sequence[Wanted], fetched: memoryview | ObjectMissingError, kind: int, take: Take, tries: int
    ) -> None:
        start, key = run[0].at.offset, run[0].at.pack.key
        if isinstance(fetched, ObjectMissingError):
            if not tries:
                raise StoreDamagedError(f"{self._backend.location}/{key} is missing") from fetched
            # A prune has moved what it held since the index was loaded.
            self._index.reload()
            numbers = [one.number for one in run]
            self._read([one.id for one in run], kind, lambda at, data: take(numbers[at], data), tries - 1)
            return
        for one in run:
            at = one.at.offset - start
            stored = fetched[at : at + HEADER_LENGTH + one.at.length]
            try:
                take(one.number, self._open(stored, one, kind))
            except BadRecordError as error:
                raise StoreDamagedError(
                    f"{self._backend.location}/{key} is damaged at byte {one.at.offset}: "
                    f"the record {one.id.hex()}: {error}",
                    "`mover verify --deep` names every restore point that needs it",
                ) from error

    def _open(self, stored: memoryview, one: Wanted, kind: int) -> bytes | memoryview:
        payload = records.payload(stored, one.id, one.at.meta)
        plain = records.expand(one.id, payload, one.at.meta, self._context.decompressor, self._cipher)
        if one.at.meta >> 24 & 15 != kind or self._identify[kind](plain) != one.id:
            raise BadRecordError("its content is not what its id says")
        return plain


def _runs(wanted: Sequence[Wanted], tuning: Tuning) -> Iterator[list[Wanted]]:
    """Neighbours that are read in one go."""
    run: list[Wanted] = []
    for one in wanted:
        if run and not _continues(run, one, tuning):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _continues(run: Sequence[Wanted], one: Wanted, tuning: Tuning) -> bool:
    """Whether `one` is read in the same go as `run`."""
    first, last = run[0].at, run[-1].at
    end = last.offset + HEADER_LENGTH + last.length
    return (
        one.at.pack == first.pack
        and one.at.length <= records.MAX_STORED
        and one.at.offset - end <= tuning.gap
        and one.at.offset - first.offset <= tuning.run
    )
