"""A directory as the place that keeps a store's objects: keys are paths, `tmp/` beside them holds unfinished uploads.

Publishing is write to `tmp/`, fsync, link to the final name (which fails if it exists), unlink, fsync of the directory.
Without the fsyncs a power cut leaves names of empty files, and without the directories' fsync no names.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

from mover.errors import StoreFullError, StoreIoError, StoreUnansweredError
from mover.store.backend import LOCAL, Buffer, ObjectMissingError, Tuning
from mover.store.descriptors import Descriptors
from mover.store.file_map import map_file
from mover.store.file_ops import FileOps

_FULL = {
    errno.ENOSPC: ("no space left", "make room there"),
    errno.EDQUOT: ("the quota is used up", "make room there, or have the quota raised"),
    errno.EROFS: ("it is read-only", "find out why (a failing disk? then dmesg says so), and mount it for writing"),
    errno.EFBIG: ("the file system takes no file of this size", "use another file system"),
}
# A new upload is locked right after its file is made; only files older than this are looked at when tidying up.
_LITTER_AGE = 3600.0


class DirectoryBackend:
    """Objects as files under `path` (absolute). `ops` does the writing."""

    tuning: Tuning = LOCAL

    def __init__(self, path: str, ops: FileOps | None = None) -> None:
        self._root = path
        self._ops = ops or FileOps()
        self._durable: set[str] = set()
        self._tidied = False
        self._lock = Lock()
        self._descriptors = Descriptors()

    def make_root(self) -> None:
        """Make the directory itself, and its ancestors, if they are not there. Raises `StoreIoError`."""
        with self._writing(""):
            made = self._root
            while not os.path.isdir(made):
                made = os.path.dirname(made)
            for part in os.path.relpath(self._root, made).split(os.sep):
                if part != ".":
                    with suppress(FileExistsError):
                        self._ops.mkdir(os.path.join(made, part))
                    self._ops.sync_dir(made)
                    made = os.path.join(made, part)

    @property
    def location(self) -> str:
        """The directory's path."""
        return self._root

    def create(self, key: str) -> FileUpload:
        """Begin an upload in `tmp/`. The first one clears away what uploads of dead processes left there."""
        with self._writing(key):
            temporary = f"{self._root}/tmp"
            self._make_durable(temporary)
            self._tidy()
            return FileUpload(self, self._ops, key, f"{temporary}/{secrets.token_hex(16)}")

    def put(self, key: str, data: bytes) -> bool:
        """Write a small object, durable on return. False if it exists."""
        upload = self.create(key)
        try:
            upload.write([data])
            return upload.commit()
        finally:
            upload.abort()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """At most `length` bytes from `offset` on.

        The directory is asked each time: what another process has removed is missing, though it may be open here yet.
        """
        with self._reading(key):
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if length is None:
                    length = max(os.fstat(fd).st_size - offset, 0)
                data = os.pread(fd, length, offset)
                while len(data) < length:
                    more = os.pread(fd, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
                return data
            finally:
                os.close(fd)

    def read_into(self, key: str, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on; less only at the object's end."""
        done = 0
        with self._reading(key), self._descriptors.borrow(self._path(key)) as fd:
            while done < len(view):
                count = os.preadv(fd, [view[done:]], offset + done)
                if not count:
                    break
                done += count
        return done

    def map(self, key: str) -> memoryview:
        """The object as a read-only mapping, shared by all processes through the page cache."""
        with self._reading(key):
            return map_file(self._path(key))

    def renew(self) -> None:
        """There are no copies here."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Walk the directory `prefix`; names that vanish meanwhile are left out."""
        with self._reading(prefix):
            yield from self._walk(f"{self._root}/{prefix}".rstrip("/"), prefix)

    def _walk(self, path: str, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if prefix or entry.name != "tmp":
                    yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):
                yield prefix + entry.name, entry.stat().st_size

    def delete(self, key: str, *, durable: bool = False) -> None:
        """Unlink the file. Without `durable`, a power cut may bring it back."""
        with self._writing(key):
            path = self._path(key)
            self._descriptors.forget(path)
            with suppress(FileNotFoundError):
                self._ops.unlink(path)
                if durable:
                    self._ops.sync_dir(os.path.dirname(path))

    def _tidy(self) -> None:
        """Remove uploads whose process has died: theirs are the files in `tmp/` that nobody holds locked."""
        with self._lock:
            done, self._tidied = self._tidied, True
        if done:
            return
        with suppress(FileNotFoundError, PermissionError):
            for entry in os.scandir(f"{self._root}/tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _LITTER_AGE and _is_orphan(entry.path):
                        self._ops.unlink(entry.path)

    def close(self) -> None:
        """Close the files kept open for reading."""
        self._descriptors.close()

    def publish(self, temporary: str, key: str) -> bool:
        """Give a synced temporary file its name. False if the name is taken, for good.

        Raises `StoreUnansweredError` if the file has its name now, but may have lost it after a power cut.
        """
        target = self._path(key)
        parent = os.path.dirname(target)
        self._make_durable(parent)
        try:
            self._ops.link(temporary, target)
            ours = True
        except FileExistsError:
            # Over NFS the reply to a link that succeeded can be lost, and the repeated request then says EEXIST.
            ours = os.stat(temporary).st_nlink == 2
        try:
            self._ops.sync_dir(parent)
        except OSError as error:
            if not ours:
                raise
            raise StoreUnansweredError(
                f"{target} is written, but whether its name lasts is not known: {error.strerror}",
                "run it again once the disk is well; what is stored is intact",
            ) from error
        return ours

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _make_durable(self, directory: str) -> None:
        """Make `directory` and its ancestors below the root, and their names durable.

        One that exists already is synced too, once per process: its maker may not have come to that yet.
        """
        with self._lock:
            if directory in self._durable or directory == self._root:
                return
        parent = os.path.dirname(directory)
        self._make_durable(parent)
        with suppress(FileExistsError):
            self._ops.mkdir(directory)
        self._ops.sync_dir(parent)
        with self._lock:
            self._durable.add(directory)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissingError(key) from error
        except OSError as error:
            raise StoreIoError(f"cannot read {self._root}/{key}: {error.strerror}") from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        with writing_errors(self._root, key):
            yield


@contextmanager
def writing_errors(root: str, key: str) -> Iterator[None]:
    """Turn what the system says while `key` is written into our errors."""
    try:
        yield
    except OSError as error:
        if full := _FULL.get(error.errno or 0):
            reason, remedy = full
            raise StoreFullError(
                f"the store at {root} takes no more: {reason} (writing {key})",
                f"{remedy}; what is stored is intact, and the next run goes on with what this one had written",
            ) from error
        raise StoreIoError(f"cannot write {root}/{key}: {error.strerror}") from error


def _is_orphan(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


class FileUpload:
    """A file in `tmp/`, locked for as long as it is open."""

    def __init__(self, backend: DirectoryBackend, ops: FileOps, key: str, path: str) -> None:
        self._backend = backend
        self._ops = ops
        self._key = key
        self._path = path
        self._fd = ops.create(path)
        self._open = True
        # Some network file systems have no locks; there, litter is younger than an hour or gone.
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append `buffers` in order."""
        with writing_errors(self._backend.location, self._key):
            self._ops.write(self._fd, buffers)

    def commit(self) -> bool:
        """Sync the file and give it its name."""
        with writing_errors(self._backend.location, self._key):
            self._ops.sync(self._fd)
            published = self._backend.publish(self._path, self._key)
        self.abort()
        return published

    def abort(self) -> None:
        """Close the file and remove its temporary name."""
        if self._open:
            self._open = False
            with suppress(OSError):
                self._ops.unlink(self._path)
            with suppress(OSError):
                self._ops.close(self._fd)
