"""A store: open or make one, list its restore points, read disks, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from mover.errors import (
    FormatTooNewError,
    NotEncryptedError,
    NotFoundError,
    PassphraseError,
    StoreDamagedError,
    StoreFullError,
    StoreIoError,
    StoreMissingError,
    UsageError,
)
from mover.store import config as configs
from mover.store import partial
from mover.store import point as points
from mover.store.at_once import at_once
from mover.store.backend import Backend, ObjectMissingError
from mover.store.condemned import refuse_damaged_condemnations
from mover.store.config import Config
from mover.store.identity import Identity
from mover.store.index import Index
from mover.store.keys import Cost, KeyRing, Slot
from mover.store.lease import Lease
from mover.store.lost import LostParts, read_lost
from mover.store.names import KEYS, POINTS, STORE, PartialName, PointName, new_writer_id, parse_point
from mover.store.notes import damaged_notes
from mover.store.pages import PageCache
from mover.store.partial import PartialRun
from mover.store.places import Place, mapping_for, open_backend
from mover.store.point import BadPointError, LaterPointError, Point
from mover.store.prune import Prune, PruneReport, one_after_the_other
from mover.store.reader import DiskReader
from mover.store.record import BLOB
from mover.store.records import Records
from mover.store.repair import Repair, RepairReport
from mover.store.roots import forget
from mover.store.s3.access import S3Access
from mover.store.stamps import Misfit, Stamp, misfits, read_stamps, write_stamps
from mover.store.verify import Damage, Verification
from mover.store.waiting import Patience, Progress
from mover.store.writer import Writer
from protocol.secret import Secret

# The shortest prefix of a point's id that is taken for one.
_SHORTEST = 4


class _LaterPoint(Damage):
    """A restore point of a later format: it cannot be checked here, and nothing is known to be wrong with it."""


class Store:
    """One opened store. Synchronous; any thread may use it."""

    def __init__(self, backend: Backend, config: Config) -> None:
        self.config = config
        self._backend = backend
        self._identity = Identity.of(config.key, encrypted=config.encrypted)
        self._index = Index(backend, self._identity, mapping_for(backend, config.store_id, self._identity.cipher))
        self._records = Records(backend, self._identity, self._index, config.pack_target)
        self._cache = PageCache(self._records)

    @classmethod
    def create(
        cls,
        where: Place,
        *,
        chunk_size: int = 64 << 10,
        compression: str = "zstd:1",
        passphrase: Secret | None = None,
        cost: Cost | None = None,
        s3: S3Access | None = None,
    ) -> Store:
        """Make a store: `where` is a path, a `file://` or `s3://` URL, or a back end. `chunk_size`, in bytes, stays.

        With a passphrase it is encrypted, for good; `cost` is what trying a passphrase takes. `s3` says how to reach a
        bucket. Raises `UsageError` if there is a store already or the settings are wrong,
        `StoreUnfitError` if the server ignores what a store rests on, `StoreFullError`, `StoreIoError`.
        """
        try:
            config = configs.new_config(chunk_size, compression, encrypted=passphrase is not None)
        except ValueError as error:
            raise UsageError(str(error)) from error
        backend = open_backend(where, make=True, s3=s3)
        config = replace(config, pack_target=backend.tuning.pack_target)
        description = configs.encode(config)
        ring = KeyRing(backend, config.store_id, description)
        # The key first: a store that exists can be opened.
        slot = None if passphrase is None else ring.add(config.key, passphrase, cost=cost)
        if not backend.put(STORE, description):
            if slot is not None:
                backend.delete(f"{KEYS}{slot.id}")
            raise UsageError(f"there is a store at {backend.location} already")
        return cls(backend, config)

    @classmethod
    def open(
        cls,
        where: Place,
        *,
        passphrase: Secret | None = None,
        encrypted: bool = False,
        s3: S3Access | None = None,
    ) -> Store:
        """Open a store. `s3` says how to reach a bucket.

        `passphrase` is for stores that are encrypted. With `encrypted` others are refused: whoever can write to the
        place could put a store there that is not, and wait for what comes.

        Raises `StoreMissingError`, `FormatTooNewError`, `StoreDamagedError`, `StoreIoError`, `PassphraseError`,
        `NotEncryptedError`.
        """
        backend = open_backend(where, s3=s3)
        try:
            data = backend.get(STORE, 0, configs.MAX_LENGTH + 1)
        except ObjectMissingError as error:
            if next(backend.list(POINTS), None) is not None:
                raise StoreDamagedError(
                    f"{backend.location} holds restore points but no store.json", "copy this file back from elsewhere"
                ) from error
            raise StoreMissingError(f"there is no store at {backend.location}") from error
        config = configs.decode(backend.location, data)
        if config.encrypted:
            config = _unlock(backend, config, data, passphrase)
        elif encrypted:
            raise NotEncryptedError(
                f"the store at {backend.location} is not encrypted",
                "whether a store is encrypted is decided when it is made: name another place, or give no passphrase",
            )
        return cls(backend, config)

    @property
    def keys(self) -> KeyRing:
        """The passphrases of an encrypted store. Raises `NotEncryptedError`."""
        if not self.config.encrypted:
            raise NotEncryptedError(f"the store at {self.location} is not encrypted")
        return KeyRing(self._backend, self.config.store_id, self._backend.get(STORE, 0, configs.MAX_LENGTH))

    def add_passphrase(self, passphrase: Secret, label: str = "", cost: Cost | None = None) -> Slot:
        """Let one more passphrase open this store. Nothing that is stored is written anew."""
        return self.keys.add(self.config.key, passphrase, label, cost)

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        return self._backend.location

    @property
    def chunk_size(self) -> int:
        """Bytes per chunk."""
        return self.config.chunk_size

    @property
    def readers(self) -> int:
        """How many threads it takes at least to read disks as fast as the store can: more if it is far away."""
        return self._backend.tuning.requests

    def writer(self) -> Writer:
        """Begin to write. One writer serves a whole run with all its threads; use it as a context manager.

        Raises `FormatTooNewError`, and what the store raises.
        """
        self.config.require(self.location, "write")
        # The lease before everything that is looked at: either a prune sees it, or we see what the prune condemned.
        lease = Lease(self._backend, new_writer_id())
        try:
            refuse_damaged_condemnations(self.location, self._index.reload().damaged)
        except BaseException:
            lease.release()
            raise
        return Writer(lease, self._backend, self._identity, self.config, self._index, self._records, self._cache)

    def points(self) -> list[Point]:
        """All restore points, oldest first.

        Raises `StoreDamagedError` naming the first one that cannot be read, `FormatTooNewError` if it is of a later
        format.
        """
        found, damaged = self.readable_points()
        self._refuse_damaged(damaged)
        return found

    def readable_points(self) -> tuple[list[Point], list[Damage]]:
        """The restore points that can be read, oldest first, and what is wrong with the others."""
        found: list[Point] = []
        damaged: list[Damage] = []
        names = (name for key, _ in self._backend.list(POINTS) if (name := parse_point(key)) is not None)
        for one in at_once(self._backend.tuning, self._point, names):
            if isinstance(one, Point):
                found.append(one)
            elif one is not None:
                damaged.append(one)
        return sorted(found, key=lambda point: point.place), damaged

    def point(self, wanted: str) -> Point:
        """The point of this id or unique beginning of one; "latest"; or the newest one of the VM of this name or UUID.

        One that was damaged does not keep from others that are named by their id; which is the newest cannot be told
        then. Raises `NotFoundError`, `StoreDamagedError`, `FormatTooNewError`.
        """
        readable, damaged = self.readable_points()
        if not readable and not damaged:
            raise NotFoundError(f"{self.location} holds no restore points")
        if wanted == "latest":
            self._refuse_damaged(damaged)
            return readable[-1]
        of_vm = [point for point in readable if wanted in (point.record.vm_uuid, point.record.vm_name)]
        if of_vm:
            self._refuse_damaged(damaged)
            if len({point.record.vm_uuid for point in of_vm}) > 1:
                raise NotFoundError(
                    f"several VMs are called {wanted}", "name the VM by its UUID, or the point by its id"
                )
            return of_vm[-1]
        matching = [point for point in readable if point.id.startswith(wanted)]
        if len(wanted) >= _SHORTEST and len(matching) == 1:
            return matching[0]
        if len(wanted) >= _SHORTEST and matching:
            raise NotFoundError(f"several points begin with {wanted}: {', '.join(point.id for point in matching)}")
        self._refuse_damaged(damaged)
        raise NotFoundError(f"{self.location} has no point or VM {wanted}", "`mover list` shows what there is")

    def _refuse_damaged(self, damaged: Sequence[Damage]) -> None:
        others = "the other restore points are intact: `mover list` shows them, name one by its id"
        for damage in damaged:
            if isinstance(damage, _LaterPoint):
                raise FormatTooNewError(f"{self.location}/{damage.object}: {damage.reason}", others)
            raise StoreDamagedError(
                f"{self.location}/{damage.object} is damaged: {damage.reason}", f"{others}; or remove this file"
            )

    def disk(self, root: bytes, size: int) -> DiskReader:
        """Read the content `root` of a disk of `size` bytes."""
        return DiskReader(self._records, self._cache, root, size, self.chunk_size)

    def get_blob(self, id: bytes) -> bytes:
        """A blob of at most 4 MiB. Raises `StoreDamagedError`."""
        return self._records.get(id, BLOB)

    def verify(
        self,
        only: Sequence[Point] | None = None,
        *,
        deep: bool = False,
        limit: float | None = None,
        routine: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Damage]:
        """Check what the points in `only` need, or with None everything, and yield what is damaged.

        Every record is compared with its checksum, or if `deep` decompressed and compared with its id. Of `only`, the
        first are taken until they need the share `limit` of all that is stored; if the check is `routine`, points that
        cannot be read are damage, too, although they are not among them. Points that were found whole are stamped at
        the end. `progress` is called with the bytes checked and to be checked.
        """
        found, damaged = self.readable_points()
        if only is None or routine:
            yield from damaged
        if only is None:
            yield from self._small_damage(found, damaged)
            self._index.mapping.renew()
        verification = Verification(
            self._backend,
            self._identity,
            self._index.reload(),
            self._cache,
            self.chunk_size,
            deep,
            self._index.reload,
            progress,
            limit,
        )
        yield from verification.run(found if only is None else list(only), found, everything=only is None)
        # Where nothing can be written, or must not be, a check is a check all the same.
        with suppress(StoreFullError, StoreIoError, FormatTooNewError):
            self.config.require(self.location, "write")
            write_stamps(self._backend, self._identity, verification.whole(), Stamp(int(time.time()), deep))

    def _small_damage(self, found: Sequence[Point], damaged: Sequence[Damage]) -> Iterator[Damage]:
        """What is wrong with the objects that are neither packs, index nor points, and what they say of points."""
        if self.config.encrypted:
            yield from (Damage(key, reason, ()) for key, reason in self.keys.slots()[1])
        for misfit in self._misfits(found, damaged):
            yield Damage(misfit.object, misfit.reason, (misfit.point,) if misfit.point else ())
        yield from (Damage(key, reason, ()) for key, reason in damaged_notes(self._backend, self._identity))

    def _misfits(self, found: Sequence[Point], damaged: Sequence[Damage]) -> list[Misfit]:
        unreadable = frozenset(damage.object for damage in damaged)
        return list(misfits(self._backend, self._identity, found, unreadable))

    def due(self, older_than: float, *, deep: bool = False) -> list[Point]:
        """The points that were not found whole for `older_than` seconds, those that wait longest first."""
        found, _ = self.readable_points()
        now = time.time()
        stamps = read_stamps(self._backend, self._identity, found, now=now, deep=deep)
        waiting = [(stamps[p.name].time if p.name in stamps else 0, p.record.created, p) for p in found]
        return [point for last, _, point in sorted(waiting, key=lambda one: one[:2]) if last <= now - older_than]

    def forget(self, wanted: Sequence[Point]) -> list[Point]:
        """Give up restore points; returns those that are gone now. `prune` gives their space back.

        Left alone are the newest point of a VM that would have none, and points of runs that are still writing. Raises
        `FormatTooNewError`, and what the store raises.
        """
        self.config.require(self.location, "prune")
        return forget(self._backend, self.readable_points()[0], wanted)

    def prune(
        self, *, min_live: float = 0.7, patience: Patience | None = None, progress: Progress | None = None
    ) -> PruneReport:
        """Delete what no restore point needs. Backups and other prunes may run meanwhile.

        Packs of which less than `min_live` is needed are copied and deleted too. It waits for backups that are running,
        and shuts out those that have been silent for too long. `progress` may raise to stop it; what an interrupted
        prune has left, the next one finishes. Raises `StoreDamagedError`, and deletes nothing, if points or index are
        damaged, likewise `FormatTooNewError` if a point is of a later format, and what the store raises.
        """
        prune = self._prune(min_live, patience, progress)
        report = prune.run()
        if not prune.finished_another:
            return report
        return one_after_the_other(report, self._prune(min_live, patience, progress).run())

    def would_prune(
        self, without: Sequence[Point] = (), *, min_live: float = 0.7, progress: Progress | None = None
    ) -> PruneReport:
        """What a prune would do after the points `without` were forgotten, if nobody wrote. Changes nothing."""
        return self._prune(min_live, None, progress).plan(without)

    def _prune(self, min_live: float, patience: Patience | None, progress: Progress | None) -> Prune:
        self.config.require(self.location, "prune")
        return Prune(
            self._backend,
            self._identity,
            self.config,
            self._index,
            self._cache,
            min_live,
            patience or Patience(),
            progress or (lambda *_: None),
        )

    def repair(
        self,
        *,
        deep: bool = False,
        dry: bool = False,
        patience: Patience | None = None,
        progress: Progress | None = None,
    ) -> RepairReport:
        """Make the index anew where it is damaged, save good records from damaged packs, and say what is lost.

        What is lost is stored again when it is seen again; backups do not build on points that lack something. Where
        packs have to be deleted it waits for backups that are running, as a prune does. With `dry` nothing is changed.
        Raises `StoreDamagedError` if it cannot be known what a prune is about to delete, `FencedError` if a prune has
        given it up, `FormatTooNewError`, and what the store raises.
        """
        self.config.require(self.location, "prune")
        lease = Lease(self._backend, new_writer_id(), repair=True)
        try:
            found, damaged = self.readable_points()
            self._index.mapping.renew()
            strays = self._misfits(found, damaged)
            notes = list(partial.damaged(self._backend, self._identity))
            helpless = [(one.object, one.reason) for one in damaged] + [(one.object, one.reason) for one in strays]
            repair = Repair(
                self._backend,
                self._identity,
                self.config,
                self._index,
                self._cache,
                lease,
                deep,
                patience or Patience(),
                progress or (lambda *_: None),
                lambda: self.readable_points()[0],
            )
            report = repair.run(helpless + notes, dry=dry)
            if not dry:
                # What is told now need not be told again.
                for key in [*(stray.key for stray in strays), *(key for key, _ in notes)]:
                    self._backend.delete(key)
            return report
        finally:
            lease.release()

    def lost_roots(self) -> frozenset[bytes]:
        """The roots of disks that lack something, as the last repair found. Raises `StoreDamagedError`."""
        return read_lost(self._backend, self._identity)

    def lacking(self, among: Sequence[Point]) -> list[Point]:
        """The points of `among` of which the last repair found disks to lack something, and nothing stored it again.

        Raises `StoreDamagedError`.
        """
        noted = self.lost_roots()
        disks = [(point, disk) for point in among for disk in point.record.disks if disk.root in noted]
        if not disks:
            return []
        parts = LostParts(self._index.reload(), self._cache, self.chunk_size)
        names = {point.name for point, disk in disks if parts.of(disk.root, disk.size)}
        return [point for point in among if point.name in names]

    def unfinished(self) -> list[tuple[PartialName, PartialRun | None]]:
        """The notes of runs on how far they are, the newest first; None for one that cannot be read."""
        return list(partial.read_all(self._backend, self._identity))

    def close(self) -> None:
        """Let go of open files and connections."""
        self._records.close()
        self._backend.close()

    def _point(self, name: PointName) -> Point | Damage | None:
        """Read one; None if it is a fence, or was removed meanwhile."""
        try:
            data = self._backend.get(name.key, 0, points.MAX_LENGTH + 1)
            return None if data == points.FENCE else points.decode(self._identity, name, data)
        except ObjectMissingError:
            return None
        except LaterPointError as error:
            return _LaterPoint(name.key, f"{error}; use that one", ())
        except BadPointError as error:
            return Damage(name.key, str(error), ())


def _unlock(backend: Backend, config: Config, description: bytes, passphrase: Secret | None) -> Config:
    if passphrase is None:
        raise PassphraseError(
            f"the store at {backend.location} is encrypted: it takes a passphrase",
            "a job names it with passphrase-file, -env or -command in [store]; the command line with "
            "--passphrase-file, -env or -command, or the variable MOVER_PASSPHRASE",
        )
    key, slot = KeyRing(backend, config.store_id, description).unlock(passphrase)
    return replace(config, key=key, slot=slot)
