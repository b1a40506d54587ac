"""`mover verify --against-pool`: a restore point compared with the snapshots that are still on the pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mover.restore.against import Compared, compare_with_pool
from mover.run import join_pool
from mover.simulator import Options
from tests.cli_site import MiB, cli_site
from tests.pool_fixtures import GRANULE, Site, fill_some, site

SIZES = [20 * MiB, 6 * MiB]


async def compared(here: Site, point: str = "latest") -> list[Compared]:
    async with join_pool(here.job().pool) as (pool, transfers):
        return await compare_with_pool(here.store, here.store.point(point), pool, transfers)


def tamper(here: Site, disk: int, offset: int) -> None:
    """Change a byte of what the newest point's snapshot of a disk holds."""
    uuid = here.store.points()[-1].record.disks[disk].snapshot_uuid
    assert uuid is not None
    before = here.simulator.disks.read(uuid, offset, 1)
    here.simulator.disks.write(uuid, offset, bytes([before[0] ^ 1]))


@pytest.mark.parametrize("nbd", ["tls", "none"])
async def test_a_point_is_what_its_snapshots_hold_until_they_differ(tmp_path: Path, nbd: Any):
    async with site(tmp_path, Options(nbd=nbd)) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        assert (await here.run()).exit_code == 0
        # The VM goes on; the snapshots do not.
        here.simulator.guest(vdis[0]).scatter(5, 6000, "random")
        found = await compared(here)
        assert [(disk.position, disk.differing, disk.problem) for disk in found] == [("0", 0, None), ("1", 0, None)]
        tamper(here, 1, 3 * GRANULE + 17)
        first, second = await compared(here)
        assert (first.differing, second.differing, second.parts) == (0, GRANULE, [(3 * GRANULE, GRANULE)])


@pytest.mark.parametrize(("policy", "words"), [("metadata", "only the CBT log"), ("none", "no snapshot of this state")])
async def test_what_cannot_be_compared_is_said(tmp_path: Path, policy: str, words: str):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", SIZES)
        assert (await here.run(here.job(f'[backup]\nkeep-snapshot = "{policy}"\n'))).exit_code == 0
        assert all(words in str(disk.problem) for disk in await compared(here))


async def test_the_snapshots_of_an_older_point_are_gone(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", SIZES)
        for _ in range(2):
            assert (await here.run()).exit_code == 0
        older = here.store.points()[0]
        assert all("gone from the pool" in str(disk.problem) for disk in await compared(here, older.id))


def test_the_verb_and_its_exit_codes(tmp_path: Path):
    with cli_site(tmp_path) as here:
        made = here.tell("make_vm", name="web", sizes=SIZES)
        here.tell("fill", vdi=made["vdis"][0], offset=0, length=5 * MiB, kind="random")
        here.mover("run", here.job, "--progress", "none")
        said = here.mover("verify", here.job, "--against-pool", "latest")
        assert said.count("is what the snapshot") == 2
        told = json.loads(here.mover("verify", here.job, "--against-pool", "latest", "--json"))
        assert [disk["differing"] for disk in told["disks"]] == [0, 0]
        older = told["point"]
        here.mover("run", here.job, "--progress", "none")
        assert "gone from the pool" in here.mover("verify", here.job, "--against-pool", older, code=21)
        here.mover("verify", here.job, "--against-pool", older, "--deep", code=2)
