"""What the demo does: two VMs, a full, two incrementals, and every state restored and compared."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from mover.backup.snapshot import destroy_vdi, destroy_vm
from mover.demo.compare import first_difference
from mover.demo.pool import DemoPool, demo_pool
from mover.demo.table import Comparison, Read
from mover.errors import PartialError, PoolError
from mover.events import AnyEvent, DiskFinished, Emit, Note
from mover.job import Job, load_job
from mover.restore.files import restore_to_files
from mover.restore.options import RestoreOptions
from mover.restore.pool import restore_to_pool
from mover.run import join_pool, run_job
from mover.store import Point, Store
from protocol.xapi import Pool, Transfers

MiB = 1 << 20
GiB = 1 << 30
# A tree that every machine has.
_TREE = "/usr"


@dataclass(frozen=True)
class Scale:
    """How large the demo is, in bytes: `tree` of real files on the first disk, the sizes of the disks."""

    tree: int
    root: int
    data: int
    sparse: int
    database: int


FULL = Scale(tree=GiB + 100 * MiB, root=2 * GiB, data=512 * MiB, sparse=20 * GiB, database=256 * MiB)
SMALL = Scale(tree=40 * MiB, root=128 * MiB, data=32 * MiB, sparse=2 * GiB, database=16 * MiB)


@dataclass
class Story:
    """The state of a demo: what was read, and how each restored disk compared."""

    folder: Path
    emit: Emit
    reads: list[Read] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    _run: str = ""

    async def tell(self, scale: Scale) -> None:
        """All of it. Raises what runs and restores raise, and `PartialError` if a run failed."""
        async with demo_pool(self.folder / "pool") as pool:
            job = self._write_job(pool)
            disks = await self._furnish(pool, scale)
            for number, run in enumerate(_RUNS):
                if number:
                    await self._live(pool, disks, scale, number)
                await self._back_up(job, run)
                await self._keep_references(pool, job, run)
            await self._compare_all(pool, job)

    def _say(self, message: str) -> None:
        self.emit(Note(level="info", message=message))

    def _write_job(self, pool: DemoPool) -> Job:
        secret = self.folder / "pool.secret"
        secret.touch(mode=0o600)
        secret.write_text(pool.where.password + "\n")
        pins = ", ".join(f'"{pin}"' for pin in pool.where.fingerprints)
        path = self.folder / "job.toml"
        path.write_text(
            f'name = "demo"\n\n[pool]\nurl = "{pool.where.url}"\nusername = "{pool.where.username}"\n'
            f'password-file = "{secret}"\nfingerprint = [{pins}]\n\n'
            f'[store]\nurl = "file://{self.folder / "store"}"\n\n[[vms]]\ntag = "backup"\n'
        )
        return load_job(path)

    async def _furnish(self, pool: DemoPool, scale: Scale) -> dict[str, str]:
        """Two VMs of two disks. Returns the disks' UUIDs by a name for each."""
        self._say(f"collecting real files for a file system of {scale.tree // MiB} MiB")
        tree = self.folder / "tree"
        await _in_thread(lambda: _collect(tree, scale.tree))
        web = await pool.tell("make_vm", name="web", sizes=[scale.root, scale.data], names=["web root", "web data"])
        db = await pool.tell("make_vm", name="db", sizes=[scale.sparse, scale.database], names=["db big", "db log"])
        disks = dict(zip(("root", "data", "sparse", "log"), [*web["vdis"], *db["vdis"]], strict=True))
        await pool.tell("install", vdi=disks["root"], tree=str(tree))
        await pool.tell("fill", vdi=disks["data"], offset=0, length=scale.data // 4, kind="text")
        await pool.tell("fill", vdi=disks["data"], offset=scale.data // 2, length=scale.data // 16, kind="random")
        await pool.tell("scatter", vdi=disks["sparse"], count=300, length=16384, kind="text")
        await pool.tell("fill", vdi=disks["log"], offset=0, length=scale.database // 2, kind="text")
        shutil.rmtree(tree)
        return disks

    async def _live(self, pool: DemoPool, disks: dict[str, str], scale: Scale, number: int) -> None:
        """What guests do between two runs: new files, a database at work, a log, and something wiped."""
        self._say("the guests write")
        new = self.folder / "new-files"
        new.mkdir(exist_ok=True)
        for name in range(20):
            (new / f"{name}").write_bytes(f"upload {number} {name}\n".encode() * 5000)
        files = {f"/uploads-{number}/{path.name}": str(path) for path in sorted(new.iterdir())}
        await pool.tell("write_files", vdi=disks["root"], files=files)
        await pool.tell("scatter", vdi=disks["data"], count=100, length=8192, kind="random")
        await pool.tell("scatter", vdi=disks["sparse"], count=50, length=4096, kind="random")
        await pool.tell("fill", vdi=disks["log"], offset=number * scale.database // 4, length=4 * MiB, kind="text")
        await pool.tell("fill", vdi=disks["log"], offset=number * 5 * MiB, length=MiB, kind="zeros")

    async def _back_up(self, job: Job, run: str) -> None:
        self._run = run

        def record(event: AnyEvent) -> None:
            if isinstance(event, DiskFinished):
                self.reads.append(
                    Read(run, event.name, event.mode, event.changed, event.read, event.stored, event.seconds)
                )
            self.emit(event)

        result = await run_job(job, emit=record)
        if result.exit_code != 0:
            raise PartialError(f"the demo's run {run} failed with exit code {result.exit_code}")

    async def _keep_references(self, pool: DemoPool, job: Job, run: str) -> None:
        """Copy the snapshots as they are on the pool: what every restore is compared with."""
        for point in _newest(Store.open(job.store.url)):
            for disk in point.record.disks:
                await pool.tell("dump", vdi=disk.snapshot_uuid, path=str(self._reference(point, disk.position)))

    def _reference(self, point: Point, position: str) -> Path:
        folder = self.folder / "references"
        folder.mkdir(exist_ok=True)
        return folder / f"{point.id}-{position}.raw"

    async def _compare_all(self, pool: DemoPool, job: Job) -> None:
        store = Store.open(job.store.url)
        points = store.points()
        runs = dict(zip(dict.fromkeys(point.record.run for point in points), _RUNS, strict=True))
        async with join_pool(job.pool) as (api, transfers):
            for point in points:
                run = runs[point.record.run]
                self._say(f"restoring {point.record.vm_name} as of {run}: to files, and to the pool")
                await self._compare_files(store, point, run)
                await self._compare_vm(store, point, run, pool, api, transfers)

    async def _compare_files(self, store: Store, point: Point, run: str) -> None:
        folder = self.folder / "restored"
        files = await restore_to_files(store, point, folder, emit=self.emit)
        positions = sorted((disk.position for disk in point.record.disks), key=lambda name: (len(name), name))
        for position, file in zip(positions, files, strict=True):
            await self._compare(point, position, run, "files", file)
        shutil.rmtree(folder)

    async def _compare_vm(
        self, store: Store, point: Point, run: str, pool: DemoPool, api: Pool, transfers: Transfers
    ) -> None:
        made = await restore_to_pool(store, point, api, transfers, RestoreOptions(), self.emit)
        for position, vdi in made.vdis.items():
            file = self.folder / "from-pool.raw"
            await pool.tell("dump", vdi=await api.call("VDI.get_uuid", vdi), path=str(file))
            await self._compare(point, position, run, "pool", file)
            file.unlink()
        await destroy_vm(api, made.ref)
        for vdi in made.vdis.values():
            await destroy_vdi(api, vdi)

    async def _compare(self, point: Point, position: str, run: str, target: str, file: Path) -> None:
        disk = next(disk for disk in point.record.disks if disk.position == position)
        reference = self._reference(point, position)
        difference = await _in_thread(lambda: first_difference(reference, file))
        self.comparisons.append(Comparison(run, disk.name, target, disk.size, difference))


_RUNS = ("full", "incremental 1", "incremental 2")


def _newest(store: Store) -> list[Point]:
    newest = {point.record.vm_uuid: point for point in store.points()}
    return list(newest.values())


async def _in_thread(work: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _collect(target: Path, size: int) -> None:
    """Gather regular files of this machine under `target` until they are `size` bytes; what is short is copied again.

    Links cost nothing the first time round; further copies have to be files of their own to take room.
    """
    total = 0
    for number in count():
        before = total
        for source in _regular_files():
            place = target / str(number) / source.relative_to("/")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                _place(source, place, link=number == 0)
                total += source.stat().st_size
            except OSError:
                continue
            if total >= size:
                return
        if total == before:
            raise PoolError("this machine has no files under /usr to make a file system of")


def _regular_files() -> Iterator[Path]:
    for path in sorted(Path(_TREE).rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _place(source: Path, place: Path, *, link: bool) -> None:
    if link:
        try:
            place.hardlink_to(source)
            return
        except OSError:
            pass
    shutil.copyfile(source, place)


@dataclass(frozen=True)
class Folder:
    """Where a demo works: a folder that stays, or a temporary one."""

    path: Path
    temporary: tempfile.TemporaryDirectory[str] | None

    @classmethod
    def at(cls, chosen: str | None) -> Folder:
        """The folder that was chosen, or a temporary one."""
        if chosen is not None:
            path = Path(chosen)
            path.mkdir(parents=True, exist_ok=True)
            return cls(path.resolve(), None)
        temporary = tempfile.TemporaryDirectory(prefix="mover-demo-")
        return cls(Path(temporary.name), temporary)

    def close(self) -> None:
        """Remove it, if it is temporary."""
        if self.temporary is not None:
            self.temporary.cleanup()
