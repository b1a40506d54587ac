"""Backups by XVA and VHD streams alone, from the first full to a restore; nothing is set up on the hosts."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from mover.backup.metadata import decode
from mover.errors import JobError
from mover.events import AnyEvent, DiskProgress, VmFinished
from mover.job import Job, parse_job
from mover.run import run_job
from mover.simulator import XENSERVER_7_1, Options
from mover.simulator.faults import HttpFault
from protocol.xva.ova import parse_ova
from tests.pool_fixtures import GRANULE, MiB, Site, fill_some, site

SIZES = [40 * MiB, 18 * MiB]


def xva(here: Site, more: str = "", backup: str = "", selector: str = "all = true", name: str = "test") -> Job:
    """A job of strategy xva; `backup` is further TOML of [backup]."""
    return here.job(f'[backup]\nstrategy = "xva"\n{backup}\n{more}', selector, name)


async def test_full_and_cumulative_increments_restore_every_state(tmp_path: Path):
    async with site(tmp_path, Options(nbd="none")) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        states = []
        for number in range(4):
            states.append([here.content(vdi) for vdi in vdis])
            result = await here.run(xva(here))
            assert result.exit_code == 0, here.events
            assert [plan.mode for plan in here.planned()] == ["incremental" if number else "full"] * 2
            for vdi in vdis:
                here.simulator.guest(vdi).scatter(5, 3 * 4096, "random" if number else "zeros")
        points = here.store.points()
        assert [await here.restored(point) for point in points] == states
        assert list(here.store.verify(deep=True)) == []
        full = {disk.snapshot_uuid for disk in points[0].record.disks}
        assert set(here.snapshots()) == full, "the snapshot of the full, and no other, stays"
        for point in points[1:]:
            assert {disk.base_snapshot for disk in point.record.disks} == full


async def test_increments_since_the_last_run_keep_its_snapshot(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        states, moved = [], []
        for _ in range(3):
            states.append([here.content(vdi) for vdi in vdis])
            assert (await here.run(xva(here, backup='increments = "since-last"'))).exit_code == 0
            moved.append(sum(disk.read for disk in here.finished()))
            newest = here.store.points()[-1]
            assert sorted(here.snapshots()) == sorted(str(disk.snapshot_uuid) for disk in newest.record.disks)
            here.simulator.guest(vdis[0]).fill(len(moved) * 8 * MiB, MiB, "random")
        assert [await here.restored(point) for point in here.store.points()] == states
        assert max(moved[1:]) < 5 * MiB, "each increment holds what changed since the run before"


async def test_cumulative_increments_hold_everything_since_the_full(tmp_path: Path):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [40 * MiB]))
        fill_some(here, [vdi])
        moved = []
        for number in range(3):
            assert (await here.run(xva(here))).exit_code == 0
            moved += [disk.read for disk in here.finished()]
            here.simulator.guest(vdi).fill((number + 1) * 8 * MiB, 2 * MiB, "random")
        assert 2 * MiB < moved[1] < 4 * MiB < moved[2] < 6 * MiB


async def test_what_nbd_has_stored_an_xva_does_not_store_again(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        await here.run()
        assert sum(disk.new for disk in here.finished()) > MiB
        assert (await here.run(xva(here, name="other", backup='mode = "full"'))).exit_code == 0
        assert [(disk.mode, disk.new) for disk in here.finished()] == [("full", 0), ("full", 0)]
        over_nbd, streamed = here.store.points()
        assert [disk.root for disk in over_nbd.record.disks] == [disk.root for disk in streamed.record.disks]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_exports_compressed_by_the_host(tmp_path: Path, compression: str):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        moved = []
        for kind in ("none", compression):
            assert (await here.run(xva(here, backup=f'compression = "{kind}"'), full=True)).exit_code == 0
            moved.append(sum(disk.read for disk in here.finished()))
            new = sum(disk.new for disk in here.finished())
            assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
        assert moved[1] < 0.9 * moved[0]
        assert new == 0, "the same chunks, however they came"


@pytest.mark.parametrize("size", [0, 6 * MiB], ids=["short", "long"])
async def test_ova_xml_is_kept_as_metadata(tmp_path: Path, size: int):
    """However long it is: it has the records of all hosts in it, for one."""
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        notes = {"notes": "".join(f"{number} crates\n" for number in range(size // 12))}
        here.simulator.pool.database.update("host", here.simulator.pool.master.ref, other_config=notes)
        for job in (xva(here), xva(here), here.job()):
            await here.run(job)
        for point in here.store.points():
            about = decode(here.store.get_blob(point.record.metadata))
            assert about.vm["name_label"] == "web"
            await here.restored(point)
            text = (here.folder / f"restored-{point.id}" / "web.ova.xml").read_bytes()
            assert len(text) > size
            objects = parse_ova(text).objects
            assert {"VM", "VBD", "VDI"} <= {item.cls for item in objects}
            assert notes in [item.snapshot["other_config"] for item in objects if item.cls == "host"]


@pytest.mark.parametrize("strategy", ["cbt", "xva"])
@pytest.mark.parametrize(
    ("modes", "kept"), [(["full"], False), (["full", "full"], False), (["full", "incremental"], True), ([], True)]
)
async def test_the_snapshot_stays_only_for_schedules_that_need_it(
    tmp_path: Path, modes: list[str], kept: bool, strategy: str
):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        backup = f'[backup]\nstrategy = "{strategy}"\n'
        schedules = "".join(f'[[schedules]]\nname = "s{n}"\nmode = "{mode}"\n' for n, mode in enumerate(modes))
        assert (await here.run(here.job(f'{backup}keep-snapshot = "auto"\n{schedules}'), full=True)).exit_code == 0
        assert bool(here.snapshots()) == kept
        # By default it stays whatever the schedules are: the first run that may be incremental is.
        assert (await here.run(here.job(backup + schedules), full=True)).exit_code == 0
        assert here.snapshots()
        assert (await here.run(here.job(backup))).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental"]


async def test_without_schedules_the_vms_own_mode_says_whether_its_snapshot_stays(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        here.simulator.make_vm("db", [2 * MiB])
        selector = 'name = "web"\nmode = "full"\n[[vms]]\nname = "db"'
        job = here.job('[backup]\nkeep-snapshot = "auto"\n', selector)
        assert (await here.run(job)).exit_code == 0
        kept = {disk.snapshot_uuid for point in here.store.points() for disk in point.record.disks} - {None}
        assert set(here.snapshots()) == kept and len(kept) == 1


async def test_without_its_base_a_vm_is_read_in_full_and_says_why(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        await here.run(xva(here))
        database = here.simulator.pool.database
        gone = here.store.points()[-1].record.disks[0].snapshot_uuid
        ref = database.by_uuid("VDI", str(gone))
        here.simulator.disks.delete(str(gone))
        for vbd in database.get("VDI", ref)["VBDs"]:
            database.destroy("VBD", vbd)
        database.destroy("VDI", ref)
        assert (await here.run(xva(here))).exit_code == 0
        first, second = here.planned()
        assert (first.mode, second.mode) == ("full", "full")
        assert f"the base snapshot {gone} is gone" in str(first.reason)
        assert "of another one" in str(second.reason)
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
        assert gone not in here.snapshots()
        assert len(here.snapshots()) == 2


async def test_a_base_that_the_pool_refuses_makes_a_full(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        await here.run(xva(here))
        here.simulator.guest(vdis[0]).scatter(5, 8192)
        fault = HttpFault("error", "export_raw_vdi", code="INTERNAL_ERROR", params=("base VDI is not a vhd",))
        here.simulator.faults.arm(fault)
        assert (await here.run(xva(here))).exit_code == 0
        assert [disk.mode for disk in here.store.points()[-1].record.disks] == ["full", "full"]
        assert any("base VDI is not a vhd" in str(disk.reason) for disk in here.store.points()[-1].record.disks)
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]


async def test_a_job_of_incrementals_only_forbids_the_full(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        result = await here.run(xva(here, backup='mode = "incremental"'))
        assert result.exit_code == 22
        assert here.snapshots() == []


async def test_excluded_disks_are_not_exported(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        for _ in range(2):
            assert (await here.run(xva(here, selector="all = true\nexclude-disks = [1]"))).exit_code == 0
            point = here.store.points()[-1]
            assert [disk.position for disk in point.record.disks] == ["0"]
            assert await here.restored(point) == [here.content(vdis[0])]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (HttpFault("error", "export", after=5 * MiB, code="VDI_IO_ERROR"), "VDI_IO_ERROR"),
        (HttpFault("close", "export", after=5 * MiB), "VDI_IO_ERROR"),
        (HttpFault("task", "export", code="SR_BACKEND_FAILURE_46"), "SR_BACKEND_FAILURE_46"),
        (HttpFault("error", "export", code="SR_BACKEND_FAILURE_46"), "SR_BACKEND_FAILURE_46"),
    ],
    ids=["500 in mid-stream", "cut", "only the task tells", "500 at once"],
)
async def test_an_export_that_fails_fails_the_vm_and_leaves_nothing(tmp_path: Path, fault: HttpFault, words: str):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [40 * MiB]))
        here.simulator.guest(vdi).fill(0, 30 * MiB, "random")
        here.simulator.faults.arm(fault)
        result = await here.run(xva(here))
        assert result.exit_code == 23
        (failed,) = [event for event in here.events if isinstance(event, VmFinished) and event.error]
        assert words in str(failed.error)
        assert here.store.points() == []
        assert here.snapshots() == []
        assert (await here.run(xva(here))).exit_code == 0
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_a_block_that_is_not_what_its_checksum_says_is_refused(tmp_path: Path, compression: str):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [20 * MiB]))
        here.simulator.guest(vdi).fill(0, 16 * MiB, "random")
        here.simulator.faults.arm(HttpFault("corrupt", "export", after=5 * MiB))
        result = await here.run(xva(here, backup=f'compression = "{compression}"'))
        assert result.exit_code == 23
        (failed,) = [event for event in here.events if isinstance(event, VmFinished)]
        assert "does not match" in str(failed.error) or "damaged" in str(failed.error) or "bad" in str(failed.error)
        assert compression != "none" or "the xxhash of byte" in str(failed.error)
        assert here.store.points() == []
        assert here.snapshots() == []
        assert (await here.run(xva(here))).exit_code == 0
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


@pytest.mark.parametrize("kind", ["error", "close", "task"])
async def test_a_difference_that_breaks_off_leaves_the_base_for_the_next_run(
    tmp_path: Path, kind: Literal["error", "close", "task"]
):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [40 * MiB]))
        here.simulator.guest(vdi).fill(0, 30 * MiB, "random")
        await here.run(xva(here))
        base = here.snapshots()
        here.simulator.guest(vdi).fill(0, 20 * MiB, "random")
        here.simulator.faults.arm(HttpFault(kind, "export_raw_vdi", after=5 * MiB))
        assert (await here.run(xva(here))).exit_code == 23
        assert here.snapshots() == base
        assert len(here.store.points()) == 1
        assert (await here.run(xva(here))).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental"]
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


async def test_a_grown_disk_stays_incremental(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [8 * MiB], power_state="Halted")
        (vdi,) = here.simulator.vdis_of(vm)
        here.simulator.guest(vdi).fill(0, 8 * MiB, "random")
        await here.run(xva(here))
        here.simulator.disks.resize(vdi, 14 * MiB)
        database = here.simulator.pool.database
        database.update("VDI", database.by_uuid("VDI", vdi), virtual_size=14 * MiB)
        here.simulator.guest(vdi).fill(13 * MiB, GRANULE, "random")
        await here.run(xva(here))
        assert [plan.mode for plan in here.planned()] == ["incremental"]
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


async def test_from_one_strategy_to_the_other_and_back(tmp_path: Path):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [20 * MiB]))
        fill_some(here, [vdi])
        states = []
        for job in (here.job(), xva(here), here.job(), xva(here), here.job()):
            states.append([here.content(vdi)])
            assert (await here.run(job)).exit_code == 0
            here.simulator.guest(vdi).scatter(3, 8192)
        assert [await here.restored(point) for point in here.store.points()] == states


async def test_a_log_alone_is_no_base(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        await here.run(here.job('[backup]\nkeep-snapshot = "metadata"\n'))
        assert (await here.run(xva(here))).exit_code == 0
        (plan,) = here.planned()
        assert plan.mode == "full"
        assert "has only its CBT log left" in str(plan.reason)


def test_a_job_cannot_ask_for_a_log_as_the_base(tmp_path: Path):
    text = """
[pool]
url = "https://xcp-1"
username = "root"
password-env = "P"
[store]
url = "file:///srv/mover"
[backup]
keep-snapshot = "metadata"
[[vms]]
all = true
strategy = "xva"
"""
    with pytest.raises(JobError, match=r"vms\[0\]\.keep-snapshot"):
        parse_job(text, "job.toml", "job")


async def test_chunks_larger_than_the_blocks_of_either_format(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        text = here.job_text('[backup]\nstrategy = "xva"\n').replace("[store]", '[store]\nchunk-size = "4MiB"')
        job = parse_job(text, "job.toml", "test")
        for _ in range(2):
            assert (await here.run(job)).exit_code == 0
            assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
            here.simulator.guest(vdis[0]).scatter(3, 8192)


def keep_as_qcow2(here: Site, vdi: str) -> None:
    database = here.simulator.pool.database
    database.update("VDI", database.by_uuid("VDI", vdi), sm_config={"image-format": "qcow2"})


@pytest.mark.parametrize("cbt", [False, True])
async def test_what_changes_in_a_qcow2_disk_is_read_over_nbd(tmp_path: Path, cbt: bool):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        keep_as_qcow2(here, vdis[1])
        if cbt:
            here.simulator.disks.enable_cbt(vdis[1])
            database = here.simulator.pool.database
            database.update("VDI", database.by_uuid("VDI", vdis[1]), cbt_enabled=True)
        for number in range(3):
            assert (await here.run(xva(here))).exit_code == 0
            modes = [plan.mode for plan in here.planned()]
            expected = ["incremental", "incremental" if cbt else "full"] if number else ["full", "full"]
            assert modes == expected
            assert any("keeps it as qcow2" in note and "over NBD" in note for note in here.notes()) == bool(number)
            assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
            for vdi in vdis:
                here.simulator.guest(vdi).scatter(3, 8192)


async def test_without_nbd_a_qcow2_disk_makes_fulls(tmp_path: Path):
    async with site(tmp_path, Options(nbd="none")) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        keep_as_qcow2(here, vdis[1])
        for number in range(2):
            assert (await here.run(xva(here))).exit_code == 0
            assert [plan.mode for plan in here.planned()] == ["full", "full"]
            assert any("reading the VM in full" in note for note in here.notes()) == bool(number)
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]


async def test_a_disk_too_large_for_a_vhd(tmp_path: Path):
    async with site(tmp_path) as here:
        size = 2050 << 30
        _, large = here.simulator.vdis_of(here.simulator.make_vm("web", [4 * MiB, size]))
        here.simulator.disks.enable_cbt(large)
        database = here.simulator.pool.database
        database.update("VDI", database.by_uuid("VDI", large), cbt_enabled=True)
        here.simulator.guest(large).write(size - 4096, b"the end" * 100)
        for number in range(2):
            assert (await here.run(xva(here))).exit_code == 0
            assert [plan.mode for plan in here.planned()] == ["incremental" if number else "full"] * 2
            assert any("a VHD holds at most" in note for note in here.notes()) == bool(number), here.notes()
            disk = here.store.points()[-1].record.disks[1]
            view = memoryview(bytearray(MiB))
            for offset in (0, 1500 << 30, size - MiB):
                here.store.disk(disk.root, disk.size).read_into(offset, view)
                assert view == here.simulator.disks.read(large, offset, MiB)
            here.simulator.guest(large).write(1500 << 30, b"the middle" * 100)


@pytest.mark.parametrize(
    "options",
    [Options(release=XENSERVER_7_1), Options(xva_keep_alive=True), Options(tls=False), Options(hosts=1, nbd="both")],
    ids=["XenServer 7.1, SHA-1", "keep-alive blocks", "plain HTTP", "NBD refuses everybody"],
)
async def test_pools_of_every_kind(tmp_path: Path, options: Options):
    async with site(tmp_path, options) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        for number in range(2):
            assert (await here.run(xva(here))).exit_code == 0, here.events
            assert [plan.mode for plan in here.planned()] == ["incremental" if number else "full"] * 2
            assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
            here.simulator.guest(vdis[0]).scatter(5, 8192)


@pytest.mark.parametrize("increment", [False, True])
async def test_who_interrupts_a_stream_finds_everything_clean(tmp_path: Path, increment: bool):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [64 * MiB]))
        here.simulator.guest(vdi).fill(0, 60 * MiB, "random")
        if increment:
            assert (await here.run(xva(here))).exit_code == 0
            here.simulator.guest(vdi).fill(0, 60 * MiB, "random")
        before = here.snapshots()
        begun = asyncio.Event()

        def watch(event: AnyEvent) -> None:
            if isinstance(event, DiskProgress) and event.done:
                begun.set()

        async with asyncio.TaskGroup() as group:
            running = group.create_task(run_job(xva(here), emit=watch))
            await begun.wait()
            running.cancel()
        assert running.cancelled()
        assert here.snapshots() == before
        database = here.simulator.pool.database
        assert not [task for _, task in database.items("task") if task["status"] == "pending"]
        assert database.refs("session") == []
        assert (await here.run(xva(here))).exit_code == 0
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]
        assert list(here.store.verify(deep=True)) == []
