"""The pool's own form of a VM in a backup, where the pool tells it of snapshots and where it does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mover.backup.metadata import VmMetadata, decode, ova_xml_of
from mover.events import AnyEvent, DiskFinished, Note
from mover.restore.options import RestoreOptions
from mover.restore.pool import restore_to_pool
from mover.run import join_pool, run_job
from mover.simulator import XCP_NG_8_2, XCP_NG_8_3, XENSERVER_7_6, Options, Release
from protocol.xva.ova import parse_ova
from tests.pool_fixtures import MiB, Site, destroy_vm, fill_some, site

SIZES = [12 * MiB, 6 * MiB]
OLD = Options(release=XCP_NG_8_2)
REFUSING = [XENSERVER_7_6, XCP_NG_8_2, replace(XCP_NG_8_3, snapshot_metadata=False)]


def saved(here: Site) -> VmMetadata:
    """What the newest point has about its VM."""
    return decode(here.store.get_blob(here.store.points()[-1].record.metadata))


def drives(text: str | None) -> dict[str, tuple[str, int]]:
    """By userdevice, the disks an ova.xml names: UUID and size."""
    assert text is not None
    objects = parse_ova(text.encode()).objects
    vdis = {item.id: item.snapshot for item in objects if item.cls == "VDI"}
    vbds = [item.snapshot for item in objects if item.cls == "VBD" and item.snapshot["type"] == "Disk"]
    found = [(vbd["userdevice"], vdis[vbd["VDI"]]) for vbd in vbds]
    return {number: (vdi["uuid"], int(vdi["virtual_size"])) for number, vdi in found}


def told(here: Site) -> list[str]:
    return [event.message for event in here.events if isinstance(event, Note) and "ova.xml" in event.message]


@pytest.mark.parametrize("strategy", ["cbt", "xva"])
@pytest.mark.parametrize("release", REFUSING, ids=["XenServer 7.6", "XCP-ng 8.2", "the first XCP-ng 8.3"])
async def test_where_snapshots_have_no_metadata_the_vms_own_is_kept(tmp_path: Path, release: Release, strategy: str):
    async with site(tmp_path, Options(release=release)) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        job = here.job(f'[backup]\nstrategy = "{strategy}"\n')
        for _ in range(2):
            assert (await here.run(job)).exit_code == 0
            assert told(here) == []
        assert {disk.mode for disk in here.store.points()[-1].record.disks} == {"incremental"}
        text = ova_xml_of(saved(here))
        assert drives(text) == {str(n): (vdi, size) for n, (vdi, size) in enumerate(zip(vdis, SIZES, strict=True))}
        assert {vdi["uuid"] for vdi in saved(here).vdis.values()} >= set(vdis)


@pytest.mark.parametrize("via", ["api", "xva"])
async def test_a_point_with_the_vms_own_comes_back_to_the_pool(tmp_path: Path, via: str):
    async with site(tmp_path, OLD) as here:
        vm = here.simulator.make_vm("web", SIZES)
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        contents = [here.content(vdi) for vdi in vdis]
        assert (await here.run()).exit_code == 0
        assert drives(ova_xml_of(saved(here))).keys() == {"0", "1"}
        destroy_vm(here, vm)
        options = RestoreOptions(via=via)  # type: ignore[arg-type]
        async with join_pool(here.job().pool) as (pool, transfers):
            made = await restore_to_pool(
                here.store, here.store.points()[-1], pool, transfers, options, here.events.append
            )
        restored = here.simulator.vdis_of(made.ref)
        assert [here.content(vdi) for vdi in restored] == contents
        record = here.simulator.pool.database.get("VM", made.ref)
        assert record["power_state"] == "Halted"
        assert record["blocked_operations"] == {}


def grow(here: Site, vdi: str) -> None:
    database = here.simulator.pool.database
    here.simulator.disks.resize(vdi, 20 * MiB)
    database.update("VDI", database.by_uuid("VDI", vdi), virtual_size=20 * MiB)


def unplug(here: Site, vdi: str) -> None:
    database = here.simulator.pool.database
    (vbd,) = database.get("VDI", database.by_uuid("VDI", vdi))["VBDs"]
    database.destroy("VBD", vbd)


def rewire(here: Site, vdi: str) -> None:
    database = here.simulator.pool.database
    for ref in database.get("VDI", database.by_uuid("VDI", vdi))["VBDs"]:
        database.update("VBD", ref, userdevice="7")


@pytest.mark.parametrize("change", [grow, unplug, rewire], ids=["a disk grows", "one is unplugged", "one moves"])
async def test_the_vms_own_is_not_kept_once_its_disks_are_others(tmp_path: Path, change: Callable[[Site, str], None]):
    async with site(tmp_path, OLD) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        contents = [here.content(vdi) for vdi in vdis]

        def watch(event: AnyEvent) -> None:
            here.events.append(event)
            if isinstance(event, DiskFinished) and event.disk == "1":
                change(here, vdis[1])

        assert (await run_job(here.job(), emit=watch)).exit_code == 0
        assert ova_xml_of(saved(here)) is None
        (note,) = told(here)
        assert "the pool has none of snapshots, and the VM's disks are no longer those of its snapshot" in note
        assert await here.restored(here.store.points()[-1]) == contents


async def test_disks_left_out_of_the_backup_do_not_matter(tmp_path: Path):
    async with site(tmp_path, OLD) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        assert (await here.run(here.job(selector="all = true\nexclude-disks = [1]"))).exit_code == 0
        assert told(here) == []
        assert [uuid for uuid, _ in drives(ova_xml_of(saved(here))).values()] == vdis


async def test_where_the_pool_tells_nothing_it_is_said_why(tmp_path: Path):
    async with site(tmp_path, OLD) as here:
        vm = here.simulator.make_vm("web", SIZES)

        def watch(event: AnyEvent) -> None:
            here.events.append(event)
            if isinstance(event, DiskFinished) and event.disk == "1":
                here.simulator.pool.database.destroy("VM", vm)

        assert (await run_job(here.job(), emit=watch)).exit_code == 0
        assert ova_xml_of(saved(here)) is None
        (note,) = told(here)
        assert "UUID_INVALID" in note
        assert "its records were saved" in note
