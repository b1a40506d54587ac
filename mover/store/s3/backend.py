"""A bucket as the place that keeps a store's objects.

A pack is gathered in memory while others are on their way, and goes up in one request: it appears whole or not at all,
and a process that dies leaves nothing behind. Every put of that kind is conditional (`If-None-Match: *`). What is
larger, merged segments of the index, goes up in parts, under a name nobody else has.

A put whose answer is lost is tried again; if the object is there then, it is read and compared: our bytes, our put.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from mover.errors import StoreFullError, StoreIoError, StoreUnansweredError
from mover.store.backend import REMOTE, Buffer, ObjectMissingError, Tuning
from mover.store.s3.access import S3Access, connect, environment
from mover.store.s3.answers import FAILURES, Answer, understand

_T = TypeVar("_T")

# An object up to this size is gathered in memory. Packs of a store made for object storage are a little over 16 MiB.
_GATHERED = 24 << 20
_PART = 16 << 20
_PARTS_AT_ONCE = 2
# Seconds before the second try, and the longest pause.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class Clock:
    """Time for tries: seconds now, and waiting."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class S3Backend:
    """Objects in `bucket` below `prefix`. Any thread may use it."""

    tuning: Tuning = REMOTE

    def __init__(self, bucket: str, prefix: str, access: S3Access, clock: Clock | None = None) -> None:
        """Nothing is asked of the server yet. Raises `UsageError`, `SecretError`."""
        self._client, self._endpoint = connect(bucket, prefix, access, environment())
        self._location = f"s3://{bucket}/{prefix}".rstrip("/")
        self._retry_for = access.retry_for
        self._clock = clock or Clock()

    @property
    def location(self) -> str:
        """Its URL."""
        return self._location

    @property
    def endpoint(self) -> str:
        """Which server, for messages."""
        return self._endpoint

    def create(self, key: str) -> S3Upload:
        """Begin to gather an object."""
        return S3Upload(self, key)

    def put(self, key: str, data: Buffer) -> bool:
        """Write an object if it is absent, in one request. False if it exists."""
        unanswered = False

        def attempt(client: S3Store) -> bool:
            nonlocal unanswered
            try:
                obstore.put(client, key, data, mode="create")
                return True
            except AlreadyExistsError:
                return unanswered and self.get(key) == data
            except FAILURES as error:
                unanswered = unanswered or understand(error).passing
                raise

        try:
            return self._ask("cannot write", key, attempt)
        except StoreIoError as error:
            if unanswered:
                raise StoreUnansweredError(str(error), error.hint) from error
            raise

    def put_file(self, key: str, file: IO[bytes]) -> bool:
        """Write a large object in parts, under a name that only its writer uses. False if it exists."""
        if self._exists(key):
            return False

        def attempt(client: S3Store) -> bool:
            file.seek(0)
            obstore.put(client, key, file, use_multipart=True, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
            return True

        return self._ask("cannot write", key, attempt)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """At most `length` bytes from `offset` on."""

        def attempt(client: S3Store) -> bytes:
            if length is not None:
                return bytes(obstore.get_range(client, key, start=offset, length=length))
            if offset:
                return bytes(obstore.get(client, key, options={"range": {"offset": offset}}).bytes())
            return bytes(obstore.get(client, key).bytes())

        return b"" if length == 0 else self._read(key, attempt)

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on; less only at the object's end."""

        def attempt(client: S3Store) -> memoryview:
            return memoryview(obstore.get_range(client, key, start=offset, length=len(view)))

        if not len(view):
            return 0
        data = self._read(key, attempt)
        view[: len(data)] = data
        return len(data)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every object below `prefix`, a thousand for each request. A failure is gone on from where it was."""
        last: str | None = None
        while True:
            after = last
            pages = self._ask("cannot list", prefix, partial(_pages, prefix=prefix, after=after))
            try:
                for page in pages:
                    for key, size in page:
                        last = key
                        yield key, size
                return
            except FAILURES as error:
                if not understand(error).passing or last == after:
                    raise self._failed("cannot list", prefix, understand(error)) from error

    def delete(self, key: str, *, durable: bool = False) -> None:
        """Remove an object. It does not come back."""

        def attempt(client: S3Store) -> None:
            try:
                obstore.delete(client, key)
            except FileNotFoundError as error:
                if understand(error).no_bucket:
                    raise

        self._ask("cannot delete", key, attempt)

    def close(self) -> None:
        """Connections close by themselves."""

    def _exists(self, key: str) -> bool:
        try:
            self.get(key, 0, 1)
        except ObjectMissingError:
            return False
        return True

    def _read(self, key: str, attempt: Callable[[S3Store], _T]) -> _T | bytes:
        try:
            return self._ask("cannot read", key, attempt)
        except _PastTheEndError:
            return b""

    def _ask(self, doing: str, key: str, attempt: Callable[[S3Store], _T]) -> _T:
        """Do it, again and again while the reason for failing may pass."""
        deadline = self._clock.now() + self._retry_for
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt(self._client)
            except FAILURES as error:
                answer = understand(error)
                if answer.status == 404 and not answer.no_bucket:
                    raise ObjectMissingError(key) from error
                if answer.past_the_end:
                    raise _PastTheEndError from error
                if not answer.passing or self._clock.now() + pause > deadline:
                    raise self._failed(doing, key, answer) from error
            self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _failed(self, doing: str, key: str, answer: Answer) -> StoreIoError | StoreFullError:
        code = f" ({answer.code})" if answer.code else ""
        text = f"{doing} {self._location}/{key} at {self._endpoint}: {answer.text}{code}"
        return StoreFullError(text, answer.hint) if answer.no_room else StoreIoError(text, answer.hint)


def _pages(client: S3Store, prefix: str, after: str | None) -> Iterator[list[tuple[str, int]]]:
    """Pages of a listing; the first one has been asked for on return."""
    stream = obstore.list(client, prefix.rstrip("/") or None, offset=after, chunk_size=1000)
    first = next(stream, [])

    def pages() -> Iterator[list[tuple[str, int]]]:
        yield [(one["path"], one["size"]) for one in first]
        for page in stream:
            yield [(one["path"], one["size"]) for one in page]

    return pages()


class _PastTheEndError(Exception):
    """The range begins where the object ends."""


class S3Upload:
    """An object being gathered: in memory, and if it gets too large for that, in a file without a name.

    The memory is a mapping of its own, so that it goes back to the system as soon as the object is sent.
    """

    def __init__(self, backend: S3Backend, key: str) -> None:
        self._backend = backend
        self._key = key
        self._memory = mmap.mmap(-1, _GATHERED)
        self._length = 0
        self._file: IO[bytes] | None = None

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append `buffers` in order."""
        for buffer in buffers:
            if self._file is None and self._length + len(buffer) > _GATHERED:
                self._spill()
            if self._file is not None:
                self._append(self._file, buffer)
            else:
                self._memory[self._length : self._length + len(buffer)] = buffer
                self._length += len(buffer)

    def commit(self) -> bool:
        """Send it. False if the key exists."""
        try:
            if self._file is not None:
                return self._backend.put_file(self._key, self._file)
            with memoryview(self._memory) as whole, whole[: self._length] as data:
                return self._backend.put(self._key, data)
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget it: the server knows nothing of it yet."""
        with suppress(BufferError):
            self._memory.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        with self._gathering():
            folder = os.environ.get("TMPDIR") or "/var/tmp"
            self._file = tempfile.TemporaryFile(prefix="mover-", dir=folder)  # noqa: SIM115 - closed by abort
        self._append(self._file, self._memory[: self._length])

    def _append(self, file: IO[bytes], data: Buffer) -> None:
        with self._gathering():
            file.write(data)
            file.flush()

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreIoError(
                f"cannot gather {self._key} in a temporary file: {error.strerror}", "set TMPDIR to a folder with room"
            ) from error
