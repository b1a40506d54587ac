"""A simulated pool, a store and a job, for end-to-end tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mover.events import AnyEvent, DiskFinished, DiskPlanned, Note
from mover.job import Job, parse_job
from mover.restore.files import restore_to_files
from mover.run import RunResult, run_job
from mover.simulator import Options, Simulator
from mover.store import Point, Store

MiB = 1 << 20
GRANULE = 64 << 10


@dataclass
class Site:
    """One pool, the folder of one store, and what runs said."""

    simulator: Simulator
    folder: Path
    events: list[AnyEvent] = field(default_factory=list)

    @property
    def store(self) -> Store:
        """The store, opened anew, as another process would."""
        return Store.open(self.folder / "store")

    def job(self, more: str = "", selector: str = "all = true", name: str = "test") -> Job:
        """A job on this pool; `more` is further TOML."""
        return parse_job(self.job_text(more, selector, name), "job.toml", name)

    def job_text(self, more: str = "", selector: str = "all = true", name: str = "test") -> str:
        """The text of such a job."""
        secret = self.folder / "secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(self.simulator.password + "\n")
        pins = ", ".join(f'"{pin}"' for pin in self.simulator.fingerprints)
        return f"""
name = "{name}"
[pool]
url = "{self.simulator.url}"
username = "{self.simulator.username}"
password-file = "{secret}"
{f"fingerprint = [{pins}]" if self.simulator.options.tls else ""}
[store]
url = "file://{self.folder}/store"
[[vms]]
{selector}
{more}
"""

    async def run(self, job: Job | None = None, **options: object) -> RunResult:
        """Run a job; `events` are those of this run."""
        self.events = []
        return await run_job(job or self.job(), emit=self.events.append, **options)  # type: ignore[arg-type]

    def planned(self) -> list[DiskPlanned]:
        """How the last run meant to read each disk, by position."""
        return sorted((e for e in self.events if isinstance(e, DiskPlanned)), key=lambda e: (e.vm, e.disk))

    def finished(self) -> list[DiskFinished]:
        """How the last run did read each disk, by position."""
        return sorted((e for e in self.events if isinstance(e, DiskFinished)), key=lambda e: (e.vm, e.disk))

    def notes(self) -> list[str]:
        """The warnings of the last run."""
        return [event.message for event in self.events if isinstance(event, Note) and event.level == "warning"]

    def content(self, vdi: str) -> bytes:
        """All bytes of a disk of the pool."""
        return self.simulator.disks.read(vdi, 0, self.simulator.disks.size(vdi))

    def snapshots(self) -> list[str]:
        """The UUIDs of all snapshot VDIs on the pool."""
        return [r["uuid"] for _, r in self.simulator.pool.database.items("VDI") if r["is_a_snapshot"]]

    async def restored(self, point: Point) -> list[bytes]:
        """The content of each disk of a point, as restored to files."""
        folder = self.folder / f"restored-{point.id}"
        files = await restore_to_files(self.store, point, folder, emit=self.events.append)
        contents = [file.read_bytes() for file in files]
        for file in files:
            file.unlink()
        return contents


@asynccontextmanager
async def site(folder: Path, options: Options | None = None) -> AsyncIterator[Site]:
    """A running pool without VMs, and a place for a store."""
    folder.mkdir(parents=True, exist_ok=True)
    async with Simulator(folder / "pool", options) as simulator:
        yield Site(simulator, folder)


def destroy_vm(site: Site, vm: str) -> None:
    """Somebody deletes the VM (a ref), its disks and its snapshots; discs in its drives stay."""
    database = site.simulator.pool.database
    for ref, fields in list(database.items("VM")):
        if ref != vm and fields["snapshot_of"] != vm:
            continue
        for vbd in list(fields["VBDs"]):
            drive = database.get("VBD", vbd)
            database.destroy("VBD", vbd)
            if drive["type"] == "Disk" and database.exists("VDI", drive["VDI"]):
                site.simulator.disks.delete(database.get("VDI", drive["VDI"])["uuid"])
                database.destroy("VDI", drive["VDI"])
        for cls in ("VIF", "VTPM"):
            for owned in list(fields[f"{cls}s"]):
                database.destroy(cls, owned)
        database.destroy("VM", ref)


def fill_some(site: Site, vdis: Sequence[str], seed: int = 0) -> None:
    """Give disks something to back up: noise, text and zeros, here and there."""
    for number, vdi in enumerate(vdis):
        guest = site.simulator.guest(vdi)
        size = site.simulator.disks.size(vdi)
        guest.fill(0, min(size, 3 * MiB), "text")
        guest.fill(size - min(size, 2 * GRANULE + 512 * (seed + number)), min(size, GRANULE), "random")
        guest.scatter(6, 4096)
