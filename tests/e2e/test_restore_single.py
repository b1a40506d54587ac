"""Single disks onto a pool: as VDIs of no VM, over one that is there; and what a failed restore may leave."""

from pathlib import Path
from typing import Any

import pytest

from mover.errors import MoverError, NotFoundError, PoolError, UsageError
from mover.events import Note
from mover.restore.options import RestoreOptions
from mover.restore.pool import restore_to_pool
from mover.restore.single import restore_as_vdis, restore_into
from mover.run import join_pool
from mover.simulator import Options
from mover.simulator.faults import HttpFault
from tests.pool_fixtures import GRANULE, MiB, Site, fill_some, site

SIZES = [20 * MiB, 6 * MiB]


async def backed_up(here: Site) -> tuple[list[str], list[bytes]]:
    """The UUIDs of a halted VM's disks, and what they held when they were backed up."""
    vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES, names=["root", "data"], power_state="Halted"))
    fill_some(here, vdis)
    contents = [here.content(vdi) for vdi in vdis]
    assert (await here.run()).exit_code == 0
    return vdis, contents


async def as_vdis(here: Site, *disks: str, sr: str | None = None, **options: Any) -> dict[str, str]:
    async with join_pool(here.job().pool) as (pool, transfers):
        point = here.store.point("latest")
        return await restore_as_vdis(here.store, point, pool, transfers, disks, sr, here.events.append, **options)


async def into(here: Site, target: str, *disks: str) -> int:
    async with join_pool(here.job().pool) as (pool, transfers):
        point = here.store.point("latest")
        return await restore_into(here.store, point, pool, transfers, disks, target, here.events.append)


@pytest.mark.parametrize("nbd", ["tls", "none"])
async def test_only_what_differs_is_written_over_a_disk(tmp_path: Path, nbd: Any):
    async with site(tmp_path, Options(nbd=nbd, linger=0.3)) as here:
        vdis, contents = await backed_up(here)
        guest = here.simulator.guest(vdis[0])
        guest.log.clear()
        guest.scatter(7, 6000, "random")
        guest.fill(2 * MiB, GRANULE, "zeros")
        dirty = len(guest.log.granules) * GRANULE
        written = await into(here, vdis[0], "root")
        assert 0 < written <= dirty
        assert here.content(vdis[0]) == contents[0]
        assert await into(here, vdis[0], "0") == 0, "a disk that is right is left alone"


async def test_a_larger_disk_keeps_its_end(tmp_path: Path):
    async with site(tmp_path) as here:
        _, contents = await backed_up(here)
        (larger,) = here.simulator.vdis_of(here.simulator.make_vm("other", [8 * MiB], power_state="Halted"))
        here.simulator.guest(larger).fill(0, 8 * MiB, "random")
        end = here.content(larger)[6 * MiB :]
        await into(here, larger, "data")
        assert here.content(larger) == contents[1] + end
        assert any(isinstance(event, Note) and "stay as they are" in event.message for event in here.events)


async def test_what_cannot_take_a_disk_is_refused_before_anything_is_written(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis, _ = await backed_up(here)
        (running,) = here.simulator.vdis_of(here.simulator.make_vm("busy", [20 * MiB]))
        before = here.content(running)
        with pytest.raises(PoolError, match="is attached"):
            await into(here, running, "root")
        assert here.content(running) == before
        with pytest.raises(UsageError, match="has 6 MiB, and the disk 20 MiB"):
            await into(here, vdis[1], "root")
        with pytest.raises(UsageError, match="takes one disk, not 2"):
            await into(here, vdis[0])
        with pytest.raises(UsageError, match="is a snapshot"):
            await into(here, here.snapshots()[0], "data")
        with pytest.raises(NotFoundError, match="has no VDI"):
            await into(here, "00000000-0000-4000-8000-000000000000", "root")


async def test_an_overwrite_that_breaks_off_is_repeated(tmp_path: Path):
    async with site(tmp_path, Options(linger=0.0)) as here:
        vdis, contents = await backed_up(here)
        here.simulator.guest(vdis[0]).fill(0, 20 * MiB, "random")
        here.simulator.faults.arm(HttpFault("close", "import_raw_vdi", after=5 * MiB))
        with pytest.raises(MoverError):
            await into(here, vdis[0], "root")
        assert here.content(vdis[0]) != contents[0]
        await into(here, vdis[0], "root")
        assert here.content(vdis[0]) == contents[0]


async def test_disks_as_vdis_of_no_vm(tmp_path: Path):
    async with site(tmp_path, Options(local_sr=True)) as here:
        _, contents = await backed_up(here)
        made = await as_vdis(here)
        assert [here.content(made[position]) for position in ("0", "1")] == contents
        made = await as_vdis(here, "data", sr="Local storage")
        assert here.content(made["1"]) == contents[1]
        database = here.simulator.pool.database
        record = database.get("VDI", database.by_uuid("VDI", made["1"]))
        assert (record["name_label"], record["VBDs"]) == ("data", [])
        assert database.get("SR", record["SR"])["name_label"] == "Local storage"
        assert not any(key.startswith("mover:") for key in record["other_config"])


@pytest.mark.parametrize("keep", [False, True])
async def test_what_a_failed_restore_made_goes_or_is_kept(tmp_path: Path, keep: bool):
    async with site(tmp_path) as here:
        await backed_up(here)
        database = here.simulator.pool.database
        before = set(database.refs("VM") + database.refs("VDI"))
        here.simulator.faults.arm(HttpFault("task", "import_raw_vdi"))
        point = here.store.point("latest")
        with pytest.raises(MoverError):
            async with join_pool(here.job().pool) as (pool, transfers):
                options = RestoreOptions(keep_partial=keep)
                await restore_to_pool(here.store, point, pool, transfers, options, here.events.append)
        left = set(database.refs("VM") + database.refs("VDI")) - before
        if not keep:
            assert left == set()
            return
        (vm,) = [database.get("VM", ref) for ref in left if database.exists("VM", ref)]
        assert vm["name_label"].startswith("[restoring] ")
        assert {"start", "start_on"} <= set(vm["blocked_operations"]), "nobody starts it unawares"
        assert any(isinstance(event, Note) and vm["uuid"] in event.message for event in here.events)
