"""A simulated pool, and `mover run` on it as a process of its own, to which things happen while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mover.simulator import Options
from mover.store import Point
from tests import fork_server
from tests.odd_machine import tell
from tests.pool_fixtures import MiB, Site, site

# By the type of an event, the how manyth it is of its VM, and that VM (UUID): what happens once the run has said it.
Happenings = Mapping[tuple[str, int, str], Callable[[], Awaitable[None] | None]]


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its exit code, its events, and what else it said on stderr."""

    code: int
    events: list[dict[str, Any]]
    said: list[str]

    def of(self, kind: str, vm: str = "") -> list[dict[str, Any]]:
        """Its events of a type, those of the VM with this UUID if one is named."""
        return [one for one in self.events if one["type"] == kind and vm in ("", one.get("vm"))]

    def outcome(self, name: str) -> dict[str, Any]:
        """What became of the VM of this name."""
        (found,) = [one for one in self.of("vm.finished") if one["name"] == name]
        return found

    @property
    def warnings(self) -> list[str]:
        """What it warned of."""
        return [one["message"] for one in self.of("note") if one["level"] == "warning"]


@dataclass
class Operator:
    """Who runs the job in `folder`; the machine's clock and file system are as `odd` says."""

    here: Site
    job: Path
    odd: Path
    running: fork_server.Process | None = None

    def vm(self, name: str, sizes: list[int], sr: str | None = None) -> list[str]:
        """A VM whose disks are full of what cannot be guessed; the UUIDs of its disks."""
        vdis = self.here.simulator.vdis_of(self.here.simulator.make_vm(name, sizes, sr=sr))
        for vdi, size in zip(vdis, sizes, strict=True):
            self.here.simulator.guest(vdi).fill(0, size, "random")
        return vdis

    def uuid(self, name: str) -> str:
        """The UUID of the VM of this name."""
        records = (record for _, record in self.here.simulator.pool.database.items("VM"))
        return next(str(r["uuid"]) for r in records if r["name_label"] == name and not r["is_a_snapshot"])

    async def run(self, happenings: Happenings | None = None, *options: str) -> Ended:
        """Run the job to its end. `running` is the process, for what happens meanwhile."""
        process = self.running = await fork_server.create_subprocess_exec(
            *(sys.executable, "-m", "tests.odd_machine", str(self.odd)),
            *("run", str(self.job), "--progress", "json", *options),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"MOVER_STATE": str(self.here.folder / "state")},
        )
        events: list[dict[str, Any]] = []
        said: list[str] = []
        try:
            async with asyncio.timeout(100):
                assert process.stderr is not None
                async for raw in process.stderr:
                    line = raw.decode().rstrip("\n")
                    if not line.startswith("{"):
                        said.append(line)
                        continue
                    events.append(json.loads(line))
                    kind, vm = events[-1]["type"], events[-1].get("vm") or ""
                    number = sum((one["type"], one.get("vm") or "") == (kind, vm) for one in events)
                    happens = (happenings or {}).get((kind, number, vm))
                    if happens is not None:
                        if (more := happens()) is not None:
                            await more
                        # There has been time enough for it; what follows need not be slow.
                        self.here.simulator.network.bandwidth = None
                return Ended(await process.wait(), events, said)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def newest(self) -> dict[str, Point]:
        """The newest restore point of each VM, by its name."""
        return {point.record.vm_name: point for point in self.here.store.points()}

    def signal(self, number: int) -> None:
        """Send a signal to the run that is running."""
        assert self.running is not None
        self.running.send_signal(number)

    def blocked(self) -> dict[str, set[str]]:
        """By the name of a VM, what is blocked on it."""
        records = (record for _, record in self.here.simulator.pool.database.items("VM"))
        return {r["name_label"]: set(r["blocked_operations"]) for r in records if r["blocked_operations"]}

    def untidy(self) -> list[str]:
        """What is on the pool that should not be: snapshots that no newest point needs, VMs that are blocked, tasks."""
        database = self.here.simulator.pool.database
        needed = {disk.snapshot_uuid for point in self.newest().values() for disk in point.record.disks}
        left = [f"snapshot {uuid}" for uuid in self.here.snapshots() if uuid not in needed]
        kept = {point.record.snapshot_uuid for point in self.newest().values()}
        left += [
            f"snapshot VM {record['name_label']}"
            for _, record in database.items("VM")
            if record["is_a_snapshot"] and record["uuid"] not in kept
        ]
        left += [f"blocked {name}" for name in self.blocked()]
        left += [f"task {record['name_label']}" for _, record in database.items("task")]
        return left + [f"session {ref}" for ref in database.refs("session")]

    async def assert_well(self, disks: Mapping[str, list[str]]) -> None:
        """The store is whole, the pool tidy, and the newest point of each VM holds what its disks hold."""
        assert list(self.here.store.verify(deep=True)) == []
        assert self.untidy() == []
        newest = self.newest()
        for name in disks:
            assert await self.here.restored(newest[name]) == [self.here.content(vdi) for vdi in disks[name]], name


@asynccontextmanager
async def operator(
    folder: Path, options: Options | None = None, *, pool: str = "", more: str = ""
) -> AsyncIterator[Operator]:
    """A pool that answers slowly enough for something to happen meanwhile, and a job for all its VMs, one by one.

    `pool` is further TOML of [pool], `more` further sections.
    """
    async with site(folder, options) as here:
        here.simulator.network.bandwidth = 12 * MiB
        one = Operator(here, folder / "job.toml", folder / "odd.json")
        text = here.job_text(f'[limits]\nvms = 1\nnbd-connections = 2\nnote-every = "0.1s"\n{more}\n')
        one.job.write_text(text.replace("[pool]", f"[pool]\n{pool}"))
        tell(one.odd)
        yield one
