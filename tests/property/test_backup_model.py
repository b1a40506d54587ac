"""Random lives of a VM against a plain model: whatever happens, every committed point restores what was there.

A life is a list of steps: guest writes, growth, backups of every kind, backups that are cancelled somewhere, hosts that
crash, toolstacks that restart, bases that somebody deletes, CBT switched off, disks that are added, reverts. The model
is the bytes of each disk at the moment of each backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mover.events import AnyEvent
from mover.run import join_pool, run_job
from tests.pool_fixtures import GRANULE, MiB, Site, site

SIZE = 2 * MiB
STEPS = (
    "write",
    "write",
    "zero",
    "grow",
    "back up",
    "back up",
    "back up in full",
    "keep only metadata",
    "keep nothing",
    "cancel a backup",
    "crash the host",
    "restart the toolstack",
    "delete the base",
    "switch CBT off",
    "add a disk",
    "revert",
)


class Life:
    """One VM, its history, and what every point has to hold."""

    def __init__(self, here: Site, seed: int) -> None:
        self.here = here
        self.random = random.Random(seed)
        self.simulator = here.simulator
        self.database = here.simulator.pool.database
        self.vm = self.simulator.make_vm("web", [SIZE, SIZE], power_state="Halted")
        self.expected: dict[str, list[bytes]] = {}
        self.theirs = ""

    async def begin(self) -> None:
        """Something to save, and a snapshot of somebody else's."""
        for vdi in self.simulator.vdis_of(self.vm):
            self.simulator.guest(vdi).fill(0, SIZE // 2, "random")
        async with join_pool(self.here.job().pool) as (pool, _):
            self.theirs = str(await pool.run("VM.snapshot", self.vm, "somebody else's"))

    async def take(self, step: str) -> None:
        """One step, and what must be true after it."""
        vdi = self.random.choice(self.simulator.vdis_of(self.vm))
        guest = self.simulator.guest(vdi)
        match step:
            case "write":
                guest.scatter(self.random.randint(1, 4), self.random.choice([512, 4096, 3 * GRANULE]))
            case "zero":
                guest.fill(self.random.randrange(0, SIZE, 4096), 4096, "zeros")
            case "grow":
                size = self.simulator.disks.size(vdi) + self.random.choice([512, GRANULE, SIZE])
                self.simulator.disks.resize(vdi, size)
                self.database.update("VDI", self.database.by_uuid("VDI", vdi), virtual_size=size)
            case "back up":
                await self.back_up()
            case "back up in full":
                await self.back_up(full=True)
            case "keep only metadata" | "keep nothing":
                await self.back_up("metadata" if step.endswith("metadata") else "none")
            case "cancel a backup":
                await self.cancel_backup()
            case "crash the host":
                self.simulator.crash_disk(vdi)
            case "restart the toolstack":
                self.simulator.restart_toolstack()
            case "delete the base":
                self.delete_base()
            case "switch CBT off":
                self.simulator.disks.disable_cbt(vdi)
                self.database.update("VDI", self.database.by_uuid("VDI", vdi), cbt_enabled=False)
            case "add a disk":
                self.add_disk()
            case "revert":
                async with join_pool(self.here.job().pool) as (pool, _):
                    await pool.run("VM.revert", self.theirs)
        assert self.database.exists("VM", self.theirs), "a snapshot of somebody else's is gone"

    def contents(self) -> list[bytes]:
        """What every disk holds now."""
        return [self.here.content(vdi) for vdi in self.simulator.vdis_of(self.vm)]

    async def back_up(self, keep: str = "auto", *, full: bool = False) -> None:
        """A run to its end: it succeeds, and leaves the snapshots that its point records and no other."""
        now = self.contents()
        result = await self.here.run(self.job(keep), full=full)
        assert result.exit_code == 0, self.here.events
        newest = self.here.store.points()[-1]
        self.expected[newest.id] = now
        recorded = {disk.snapshot_uuid for disk in newest.record.disks if disk.snapshot_uuid}
        assert set(self.ours()) == recorded
        assert await self.here.restored(newest) == now

    async def cancel_backup(self) -> None:
        """A run that is cancelled at some event; it leaves a whole point or none, and no snapshot that none records."""
        now = self.contents()
        known = {point.id for point in self.points()}
        left = self.random.randint(1, 14)
        job = self.job("auto")

        async with asyncio.TaskGroup() as group:

            def emit(event: AnyEvent) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    running.cancel()

            async def run() -> None:
                with contextlib.suppress(asyncio.CancelledError):
                    await run_job(job, emit=emit)

            running = group.create_task(run())
        for point in self.points():
            if point.id not in known:
                self.expected[point.id] = now
        recorded = {disk.snapshot_uuid for point in self.points() for disk in point.record.disks}
        assert set(self.ours()) <= recorded

    def points(self):
        """All points; none before there is a store."""
        return self.here.store.points() if (self.here.folder / "store").exists() else []

    def job(self, keep: str):
        """The one job of this life."""
        return self.here.job(f'[backup]\nkeep-snapshot = "{keep}"\n', selector='name = "web"')

    def ours(self) -> list[str]:
        """The UUIDs of the snapshots that carry our tags."""
        return [
            record["uuid"]
            for _, record in self.database.items("VDI")
            if record["is_a_snapshot"] and any(key.startswith("mover:") for key in record["other_config"])
        ]

    def delete_base(self) -> None:
        """Somebody tidies up."""
        for ref, record in list(self.database.items("VDI")):
            if record["uuid"] in self.ours():
                for vbd in list(record["VBDs"]):
                    self.database.destroy("VBD", vbd)
                self.simulator.disks.delete(record["uuid"])
                self.database.destroy("VDI", ref)

    def add_disk(self) -> None:
        """One more disk, up to four."""
        if len(self.simulator.vdis_of(self.vm)) < 4:
            donor = self.simulator.make_vm("donor", [SIZE], power_state="Halted")
            (vbd,) = [
                b for b in self.database.get("VM", donor)["VBDs"] if self.database.get("VBD", b)["type"] == "Disk"
            ]
            taken = {self.database.get("VBD", b)["userdevice"] for b in self.database.get("VM", self.vm)["VBDs"]}
            position = next(str(n) for n in range(16) if str(n) not in taken)
            self.database.update("VBD", vbd, VM=self.vm, userdevice=position)

    async def end(self) -> None:
        """Every point that was ever committed is still what it was."""
        points = self.points()
        assert {point.id for point in points} == set(self.expected)
        for point in points:
            assert await self.here.restored(point) == self.expected[point.id]
        if points:
            assert list(self.here.store.verify(deep=True)) == []


async def live(steps: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder)) as here:
            life = Life(here, seed)
            await life.begin()
            for step in steps:
                await life.take(step)
            await life.end()


lives = st.lists(st.sampled_from(STEPS), min_size=4, max_size=14)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(lives, st.integers(0, 1000))
def test_every_point_of_a_random_life_restores(steps: list[str], seed: int):
    asyncio.run(live(steps, seed))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(lives, st.integers(0, 1000))
def test_every_point_of_many_random_lives_restores(steps: list[str], seed: int):
    asyncio.run(live(steps, seed))


@pytest.mark.parametrize(
    "steps",
    [
        ["back up", "write", "cancel a backup", "write", "back up", "revert", "write", "back up", "back up"],
        ["keep only metadata", "write", "keep only metadata", "delete the base", "write", "back up"],
        ["back up", "crash the host", "write", "back up", "grow", "write", "back up"],
        ["back up", "switch CBT off", "write", "back up", "add a disk", "write", "back up", "keep nothing", "back up"],
        ["cancel a backup", "cancel a backup", "back up", "restart the toolstack", "cancel a backup", "back up"],
    ],
    ids=["interrupted, reverted", "metadata only", "crashed, grown", "untracked, added", "interrupted often"],
)
async def test_lives_that_went_wrong_elsewhere(steps: list[str]):
    await live(steps, seed=1)
