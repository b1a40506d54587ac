"""Writing to a store: seal chunks, build trees, commit points. One writer per run, for any number of threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import Lock
from types import TracebackType

from mover.errors import StoreFullError, StoreIoError, StoreUnansweredError
from mover.store import pack, partial
from mover.store import point as points
from mover.store import record as records
from mover.store.backend import Backend
from mover.store.config import Config
from mover.store.identity import Identity
from mover.store.index import Index
from mover.store.lease import Lease, fenced
from mover.store.merge import due, merge
from mover.store.names import DATA, META, PartialName, PointName, SegmentName
from mover.store.pack_writer import PackWriter, Written
from mover.store.pages import GuardedPages, PageCache
from mover.store.partial import PartialRun
from mover.store.point import PointRecord
from mover.store.publish import PUBLISH_RECORDS, publish_written
from mover.store.record import BLOB, CHUNK, MAX_RAW, PAGE, Record
from mover.store.records import Records
from mover.store.seal import Compressors, Make, Sealed, Sealer
from mover.store.stamps import COMMITTED, put_stamp
from mover.store.tree import Begun, Tree


class Writer:
    """Made by `Store.writer`. A context manager: what was written stays findable, whether the block succeeds or not."""

    def __init__(
        self,
        lease: Lease,
        backend: Backend,
        identity: Identity,
        config: Config,
        index: Index,
        stored: Records,
        pages: PageCache,
    ) -> None:
        self.wid = lease.wid
        self._lease = lease
        self._backend = backend
        self._identity = identity
        self._config = config
        self._index = index
        self._stored = stored
        self._page_cache = pages
        self._packs = PackWriter(backend, identity, self.wid, config.pack_target, self._pack_written)
        self._compressors = Compressors(config.level, config.chunk_size)
        self._sealer = Sealer(identity, config.chunk_size, config.level, self._add_data)
        self._unpublished: list[Written] = []
        self._next_segment = 0
        self._next_point = 0
        self._undecided = b""
        self._partial: PartialName | None = None
        self._publishing = Lock()
        self._committing = Lock()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.flush()
            finally:
                self._packs.stop()
                self._release()
        else:
            self.abort()

    def require_working(self) -> None:
        """Raise what this writer cannot go on after, as a full disk, if anything has stopped it."""
        self._packs.require_working()

    def seal(self, view: memoryview) -> Sealed:
        """Store consecutive chunks, of which the last may be short, unless they are there. Thread-safe.

        `view` is not used after the call. Raises `StoreFullError`, `StoreIoError`, `FencedError`.
        """
        return self.seal_all([view])

    def seal_all(self, views: Sequence[memoryview]) -> Sealed:
        """Store the chunks of several, as `seal` those of one; looking them up and compressing them is one step."""
        self._lease.renew_if_due()
        return self._sealer.seal(views)

    def put_blob(self, data: bytes) -> bytes:
        """Store at most 4 MiB under an id made of its content. Raises `ValueError` if it is larger."""
        if len(data) > MAX_RAW:
            raise ValueError(f"a blob has at most {MAX_RAW} bytes, this one {len(data)}")
        id = self._identity.blob_id(data)
        self._add(META, [id], lambda _: [records.seal(id, BLOB, data, self._compressors.mine, self._identity.cipher)])
        return id

    def tree(
        self,
        size: int,
        *,
        base: bytes | None = None,
        base_size: int = 0,
        compare: bytes | None = None,
        compare_size: int = 0,
    ) -> Tree:
        """Begin the tree of a disk of `size` bytes. `base` is the root of the content that chunks not put are taken
        from, `compare` one to count differences with; their sizes are in bytes. See `Tree`.
        """
        if not self._packs.ids.isdisjoint((base or b"", compare or b"")):
            # A tree of this very run: it is read through the index like any other.
            self.flush()
        return Tree(
            size,
            self._config.chunk_size,
            GuardedPages(self._page_cache, self._lease.holding),
            self._write_pages,
            self._recut,
            base=base,
            base_size=base_size,
            compare=compare,
            compare_size=compare_size,
        )

    def flush(self) -> None:
        """Make everything written so far durable and findable for others."""
        with self._lease.holding():
            self._packs.flush()
            self._publish()

    def commit(self, record: PointRecord) -> str:
        """Make a restore point of what was written; its id. It exists from the moment this returns, whatever follows.

        Raises `FencedError` if a prune has given this writer up, and what the store raises.
        """
        with self._committing:
            if self._undecided:
                # Whoever asked for it was told that it failed; that is no reason to take its number.
                self._put_point(self._undecided)
            self.flush()
            return self._put_point(points.encode(self._identity, PointName(self.wid, self._next_point), record))

    def note_progress(self, run: PartialRun) -> None:
        """Note down how far this run is, in place of the last such note; of what it says nothing was yet to be put.

        What was given to this writer before is durable then. Raises what the store raises.
        """
        self.flush()
        before, name = self._partial, PartialName(self.wid, self._partial.number + 1 if self._partial else 0)
        partial.write(self._backend, self._identity, name, run)
        self._partial = name
        if before is not None:
            self._backend.delete(before.key)

    def forget_progress(self, notes: Iterable[PartialName], *, own: bool) -> None:
        """Delete `notes` of earlier runs, and that of this one if `own`."""
        for name in notes:
            self._backend.delete(name.key)
        if own and self._partial is not None:
            self._backend.delete(self._partial.key)
            self._partial = None

    def put_again(self, tree: Tree, done: Begun) -> int:
        """Put into `tree`, which is new, what a run that was killed has left. See `partial.put_again`."""
        return partial.put_again(self._page_cache, self._index.view, tree, done)

    def _put_point(self, data: bytes) -> str:
        name = PointName(self.wid, self._next_point)
        try:
            if not self._backend.put(name.key, data) and self._backend.get(name.key) != data:
                raise fenced()
        except StoreUnansweredError:
            self._undecided = data
            raise
        self._undecided = b""
        self._next_point += 1
        id = points.decode(self._identity, name, data).id
        # The point is committed, whatever becomes of the note of it.
        with suppress(StoreFullError, StoreIoError):
            put_stamp(self._backend, self._identity, name, id, COMMITTED)
        return id

    def abort(self) -> None:
        """Stop writing. What is durable already is published, so that the next run need not write it again."""
        self._packs.stop()
        # What made us abort matters more, and packs without an index are harmless.
        with suppress(Exception):
            self._publish()
        self._release()

    def _release(self) -> None:
        """Give the lease back, unless a commit may take effect yet: only a prune that shuts us out can decide that."""
        if not self._undecided:
            self._lease.release()

    def renew(self) -> None:
        """Say that this run lives; to be called every half a minute or so while nothing is sealed.

        Raises `FencedError` if a prune has given it up, and what the store raises.
        """
        self._lease.renew()

    def _add_data(self, ids: Sequence[bytes], make: Make) -> tuple[list[bytes], int]:
        return self._add(DATA, ids, make)

    def _add(self, pack_kind: int, ids: Sequence[bytes], make: Make) -> tuple[list[bytes], int]:
        """Store the records of those `ids` that are not stored; the ids written, and the bytes that took."""
        waiting = self._packs.ids
        # This set before the view: publishing adds to the view first, and takes from the set then.
        left = [id for id in ids if id not in waiting]
        if not left:
            return [], 0
        view = self._index.view
        new = [id for id, known in zip(left, view.contains(left), strict=True) if not known]
        if not new:
            return [], 0
        made = make(new)

        def meanwhile(records: Sequence[Record]) -> Sequence[Record]:
            now = self._index.view
            if now is view or not records:
                return records
            known = now.contains([record.id for record in records])
            return [record for record, known in zip(records, known, strict=True) if not known]

        return self._packs.append(pack_kind, made, meanwhile)

    def _write_pages(self, encoded: Sequence[bytes]) -> list[bytes]:
        ids = [self._identity.page_id(data) for data in encoded]
        by_id = dict(zip(ids, encoded, strict=True))
        # Ids are as good as random: compressing them would only cost.
        cipher = self._identity.cipher
        self._add(META, list(by_id), lambda ids: [records.seal(id, PAGE, by_id[id], None, cipher) for id in ids])
        return ids

    def _recut(self, id: bytes, length: int) -> bytes:
        """The chunk `id`, cut or filled up with zeros to `length` bytes."""
        with self._lease.holding():
            data = self._stored.get(id, CHUNK)
        return self.seal(memoryview(data[:length].ljust(length, b"\0"))).ids

    def _pack_written(self, written: Written) -> None:
        """In the background thread: a pack is durable."""
        with self._publishing:
            self._unpublished.append(written)
            waiting = sum(len(one.entries) for one in self._unpublished) // pack.ENTRY_LENGTH
        self._lease.renew_if_due()
        if waiting >= PUBLISH_RECORDS:
            self._publish()

    def _publish(self) -> None:
        """Write an index segment of the durable packs that are in none yet."""
        with self._publishing:
            if not self._unpublished:
                return
            name = SegmentName(0, self.wid, self._next_segment)
            # A put that fails may have had its effect: no number is used twice.
            self._next_segment += 1
            ids = publish_written(self._backend, self._identity, name, self._unpublished)
            self._unpublished.clear()
            self._index.add(name)
            self._packs.indexed(ids)
            self._merge()

    def _merge(self) -> None:
        """Keep the number of segments small. Failing loses nothing: the segments merged are still there."""
        while chosen := due(self._index.view):
            merged = merge(self._backend, self._identity, chosen, self.wid, self._next_segment)
            if merged is None:
                return
            self._next_segment += 1
            self._index.add(merged)
            for loaded in chosen:
                if loaded.name not in {kept.name for kept in self._index.view.segments}:
                    self._backend.delete(loaded.name.key)
