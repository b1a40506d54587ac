"""Backups over CBT and NBD, from the first full to a restore, on real sockets with real libnbd."""

from pathlib import Path

import pytest

from mover.events import RunFinished, VmFinished
from mover.job import parse_job
from mover.restore.files import restore_to_files
from mover.simulator import XCP_NG_8_2, XENSERVER_7_1, XENSERVER_7_6, Options, Release
from mover.simulator.faults import CallFault
from protocol.errors import XapiError
from tests.pool_fixtures import GRANULE, MiB, fill_some, site

SIZES = [40 * MiB, 18 * MiB]


@pytest.mark.parametrize(
    "options",
    [Options(), Options(nbd="insecure"), Options(nbd="insecure", tls=False), Options(hosts=1)],
    ids=["TLS", "plain NBD", "all plain", "one host"],
)
async def test_full_and_incrementals_restore_every_state(tmp_path: Path, options: Options):
    async with site(tmp_path, options) as here:
        vm = here.simulator.make_vm("web", SIZES)
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        states = []
        for number in range(3):
            states.append([here.content(vdi) for vdi in vdis])
            result = await here.run()
            assert result.exit_code == 0, here.events
            assert [plan.mode for plan in here.planned()] == ["incremental" if number else "full"] * 2
            for vdi in vdis:
                here.simulator.guest(vdi).scatter(5, 3 * 4096, "random" if number else "zeros")
        points = here.store.points()
        assert len(points) == 3
        for point, state in zip(points, states, strict=True):
            assert await here.restored(point) == state
        assert list(here.store.verify(deep=True)) == []


@pytest.mark.parametrize("merge", [False, True], ids=["exact", "gaps merged"])
async def test_an_incremental_reads_and_stores_the_dirty_granules(tmp_path: Path, merge: bool):
    async with site(tmp_path, Options(nbd_latency=0.004 if merge else 0.0)) as here:
        job = here.job(f"[limits]\nmerge-gaps = {str(merge).lower()}\nnbd-connections = 1\n")
        vm = here.simulator.make_vm("web", [64 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        guest = here.simulator.guest(vdi)
        guest.fill(0, 32 * MiB, "random")
        await here.run(job)
        guest.log.clear()
        guest.scatter(60, 6000)
        state = here.content(vdi)
        dirty = len(guest.log.granules) * GRANULE
        await here.run(job)
        (finished,) = here.finished()
        # What is stored follows what is dirty, whatever was read along with it.
        assert finished.new + finished.zero + finished.known == dirty
        assert finished.changed <= dirty
        assert finished.read > dirty if merge else finished.read == dirty
        assert await here.restored(here.store.points()[-1]) == [state]


@pytest.mark.parametrize("full_read", ["nbd", "raw"])
@pytest.mark.parametrize("chunk", ["256KiB", "4MiB"])
async def test_other_chunk_sizes(tmp_path: Path, chunk: str, full_read: str):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", [21 * MiB, 3 * MiB]))
        fill_some(here, vdis)
        text = here.job_text(f'[backup]\nfull-read = "{full_read}"\n')
        job = parse_job(text.replace("[store]", f'[store]\nchunk-size = "{chunk}"'), "job.toml", "test")
        for _ in range(2):
            state = [here.content(vdi) for vdi in vdis]
            assert (await here.run(job)).exit_code == 0
            assert await here.restored(here.store.points()[-1]) == state
            here.simulator.guest(vdis[0]).scatter(3, 8192)
        assert list(here.store.verify(deep=True)) == []


async def test_an_unchanged_disk_costs_nothing(tmp_path: Path):
    async with site(tmp_path) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        await here.run()
        await here.run()
        assert [(f.mode, f.read, f.stored, f.changed) for f in here.finished()] == [("incremental", 0, 0, 0)] * 2
        first, second = here.store.points()
        assert [disk.root for disk in first.record.disks] == [disk.root for disk in second.record.disks]


async def test_only_the_newest_snapshot_stays_and_it_is_tagged(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", SIZES)
        database = here.simulator.pool.database
        for _ in range(3):
            await here.run()
        newest = here.store.points()[-1]
        assert sorted(here.snapshots()) == sorted(disk.snapshot_uuid for disk in newest.record.disks)
        (snapshot,) = [r for _, r in database.items("VM") if r["is_a_snapshot"]]
        assert snapshot["other_config"]["mover:job"] == "test"
        assert not any(key.startswith("mover:") for key in database.get("VM", vm)["other_config"])
        assert not [r for _, r in database.items("task") if r["status"] == "pending"]


async def test_sessions_are_logged_out(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        await here.run()
        assert here.simulator.pool.database.refs("session") == []


async def test_a_grown_disk_is_read_where_it_grew(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [8 * MiB], power_state="Halted")
        (vdi,) = here.simulator.vdis_of(vm)
        here.simulator.guest(vdi).fill(0, 8 * MiB, "random")
        await here.run()
        here.simulator.disks.resize(vdi, 14 * MiB)
        here.simulator.pool.database.update(
            "VDI", here.simulator.pool.database.by_uuid("VDI", vdi), virtual_size=14 * MiB
        )
        here.simulator.guest(vdi).fill(13 * MiB, GRANULE, "random")
        state = here.content(vdi)
        await here.run()
        assert [plan.mode for plan in here.planned()] == ["incremental"]
        assert await here.restored(here.store.points()[-1]) == [state]


async def broken_chain(here, vm, vdi):
    here.simulator.disks.disable_cbt(vdi)
    here.simulator.disks.enable_cbt(vdi)


async def base_gone(here, vm, vdi):
    database = here.simulator.pool.database
    for ref, record in list(database.items("VDI")):
        if record["is_a_snapshot"]:
            here.simulator.disks.delete(record["uuid"])
            for vbd in record["VBDs"]:
                database.destroy("VBD", vbd)
            database.destroy("VDI", ref)


async def host_crashed(here, vm, vdi):
    here.simulator.crash_disk(vdi)


@pytest.mark.parametrize(
    ("harm", "words"),
    [(broken_chain, "SR_BACKEND_FAILURE_460"), (base_gone, "is gone"), (host_crashed, "CBT was off until this run")],
)
async def test_what_breaks_the_chain_makes_a_full_that_says_why(tmp_path: Path, harm, words: str):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [20 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        fill_some(here, [vdi])
        await here.run()
        await harm(here, vm, vdi)
        here.simulator.guest(vdi).scatter(3, 4096)
        state = here.content(vdi)
        assert (await here.run()).exit_code == 0
        (plan,) = here.planned()
        assert plan.mode == "full"
        assert words in (plan.reason or "")
        (finished,) = here.finished()
        assert finished.changed <= 6 * GRANULE, "compared with the point before, only the writes differ"
        assert finished.new <= 6 * GRANULE
        assert await here.restored(here.store.points()[-1]) == [state]
        await here.run()
        assert [plan.mode for plan in here.planned()] == ["incremental"]


async def test_without_cbt_every_run_is_a_full_and_no_snapshot_stays(tmp_path: Path):
    async with site(tmp_path, Options(sr_without_cbt=True)) as here:
        vm = here.simulator.make_vm("web", [20 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        fill_some(here, [vdi])
        for _ in range(2):
            assert (await here.run()).exit_code == 0
            assert [plan.mode for plan in here.planned()] == ["full"]
            assert any("CBT cannot be turned on" in note for note in here.notes())
            assert here.snapshots() == []
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi)]


async def test_a_licence_that_forbids_cbt_is_named(tmp_path: Path):
    async with site(tmp_path, Options(restrictions={"restrict_cbt": "true"})) as here:
        here.simulator.make_vm("web", [2 * MiB])
        assert (await here.run()).exit_code == 0
        assert any("LICENCE_RESTRICTION" in note for note in here.notes())


async def test_without_a_network_for_nbd_disks_are_read_over_http(tmp_path: Path):
    async with site(tmp_path, Options(nbd="none")) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        assert (await here.run()).exit_code == 0
        assert any("xe network-param-add" in note for note in here.notes())
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]


async def test_full_read_raw_needs_no_nbd_at_all(tmp_path: Path):
    async with site(tmp_path, Options(nbd="both")) as here:
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        result = await here.run(here.job('[backup]\nfull-read = "raw"\nmode = "full"\n'))
        assert result.exit_code == 0
        assert await here.restored(here.store.points()[-1]) == [here.content(vdi) for vdi in vdis]
        assert here.simulator.pool.faults.hosts_down == set()


async def test_a_full_that_is_asked_for(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        await here.run()
        await here.run(full=True)
        assert [(plan.mode, plan.reason) for plan in here.planned()] == [("full", "a full was asked for")]
        await here.run()
        assert [plan.mode for plan in here.planned()] == ["incremental"]


async def test_a_job_that_allows_incrementals_only_fails_without_a_base(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        result = await here.run(here.job('[backup]\nmode = "incremental"\n'))
        assert result.exit_code == 22
        assert here.store.points() == []
        assert here.snapshots() == []


async def shrunk(here, vm, vdi):
    """No pool does that to a disk."""
    database = here.simulator.pool.database
    database.update("VDI", database.by_uuid("VDI", vdi), virtual_size=2 * MiB)


async def without_nbd(here, vm, vdi):
    for ref in here.simulator.pool.database.refs("network"):
        here.simulator.pool.database.update("network", ref, purpose=[])


@pytest.mark.parametrize(
    ("harm", "words"), [(broken_chain, "SR_BACKEND_FAILURE_460"), (shrunk, "shrank"), (without_nbd, "purpose nbd")]
)
async def test_a_job_that_allows_incrementals_only_fails_where_the_base_is_of_no_use(tmp_path: Path, harm, words: str):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        assert (await here.run()).exit_code == 0
        before = here.snapshots()
        await harm(here, vm, vdi)
        result = await here.run(here.job('[backup]\nmode = "incremental"\n'))
        assert result.exit_code == 22
        assert here.planned() == []
        (failed,) = [event for event in here.events if isinstance(event, VmFinished)]
        assert words in (failed.error or "")
        assert len(here.store.points()) == 1
        assert here.snapshots() == before, "the base that there is stays"


async def test_excluded_disks_are_not_snapshotted_read_or_stored(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("db", SIZES, names=["root", "scratch-1"])
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        await here.run(here.job(selector='name = "db"\nexclude-disks = ["scratch*"]'))
        (point,) = here.store.points()
        assert [disk.name for disk in point.record.disks] == ["root"]
        assert len(here.snapshots()) == 1
        assert await here.restored(point) == [here.content(vdis[0])]


@pytest.mark.parametrize("policy", ["metadata", "none"])
async def test_what_stays_on_the_pool_is_the_jobs_choice(tmp_path: Path, policy: str):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", SIZES)
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        job = here.job(f'[backup]\nkeep-snapshot = "{policy}"\n')
        await here.run(job)
        types = [r["type"] for _, r in here.simulator.pool.database.items("VDI") if r["is_a_snapshot"]]
        assert types == (["cbt_metadata"] * 2 if policy == "metadata" else [])
        here.simulator.guest(vdis[0]).scatter(4, 4096)
        states = [here.content(vdi) for vdi in vdis]
        await here.run(job)
        assert {plan.mode for plan in here.planned()} == {"incremental" if policy == "metadata" else "full"}
        assert await here.restored(here.store.points()[-1]) == states


async def test_one_vms_failure_does_not_stop_the_others(tmp_path: Path):
    async with site(tmp_path) as here:
        for name in ("a", "b", "c"):
            fill_some(here, here.simulator.vdis_of(here.simulator.make_vm(name, [6 * MiB])))
        here.simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "no space", "")))
        result = await here.run()
        assert sorted(vm.outcome for vm in result.vms) == ["done", "done", "failed"]
        assert result.exit_code == 3
        assert len(here.store.points()) == 2
        again = await here.run()
        assert again.exit_code == 0


async def test_a_run_of_which_no_vm_is_safe_has_failed_with_the_first_failures_code(tmp_path: Path):
    async with site(tmp_path) as here:
        a, b = (here.simulator.make_vm(name, [MiB]) for name in ("a", "b"))
        database = here.simulator.pool.database
        database.update("VM", a, current_operations={"task": "pool_migrate"})
        database.update("VM", b, blocked_operations={"snapshot": "no"})
        result = await here.run()
        assert [vm.exit_code for vm in result.vms] == [26, 23]
        (ended,) = [event for event in here.events if isinstance(event, RunFinished)]
        assert (result.exit_code, ended.exit_code, ended.outcome) == (26, 26, "failed")
        database.update("VM", a, current_operations={})
        result = await here.run()
        (ended,) = [event for event in here.events if isinstance(event, RunFinished)]
        assert (result.exit_code, ended.exit_code, ended.outcome) == (3, 3, "partial")


async def test_a_second_run_of_a_job_ends_at_once(tmp_path: Path):
    from mover.errors import BusyError
    from mover.lock import run_lock

    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        with run_lock("test"), pytest.raises(BusyError):
            await here.run()


async def test_a_wrong_password_is_said_and_nothing_is_made(tmp_path: Path):
    from mover.errors import UnreachableError

    async with site(tmp_path) as here:
        job = here.job()
        (tmp_path / "secret").write_text("wrong\n")
        with pytest.raises(UnreachableError, match="SESSION_AUTHENTICATION_FAILED"):
            await here.run(job)


async def test_another_tools_snapshots_are_left_alone(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB])
        from mover.run import join_pool

        async with join_pool(here.job().pool) as (pool, _):
            theirs = await pool.run("VM.snapshot", vm, "somebody else's")
            with pytest.raises(XapiError):
                await pool.run("VM.snapshot", "OpaqueRef:none", "x")
        for _ in range(2):
            assert (await here.run()).exit_code == 0
        assert here.simulator.pool.database.exists("VM", theirs)


async def test_stale_metadata_snapshots_are_removed_when_the_chain_breaks(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [8 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        fill_some(here, [vdi])
        job = here.job('[backup]\nkeep-snapshot = "metadata"\n')
        await here.run(job)
        (stale,) = here.snapshots()
        await broken_chain(here, vm, vdi)
        await here.run(job)
        (plan,) = here.planned()
        assert plan.mode == "full"
        (fresh,) = here.snapshots()
        assert fresh != stale
        assert here.simulator.disks.cbt_enabled(vdi), "CBT is never switched off"
        await here.run(job)
        assert [plan.mode for plan in here.planned()] == ["incremental"]


async def test_a_disk_that_is_added_is_read_in_full_and_the_others_are_not(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [8 * MiB])
        await here.run()
        other = here.simulator.make_vm("donor", [4 * MiB])
        database = here.simulator.pool.database
        (vbd,) = [ref for ref in database.get("VM", other)["VBDs"] if database.get("VBD", ref)["type"] == "Disk"]
        database.update("VBD", vbd, VM=vm, userdevice="1")
        await here.run(here.job(selector='name = "web"'))
        assert [(plan.disk, plan.mode, plan.reason) for plan in here.planned()] == [
            ("0", "incremental", None),
            ("1", "full", "first backup of this disk"),
        ]


async def test_chunks_larger_than_a_granule_are_read_whole(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [9 * MiB])
        (vdi,) = here.simulator.vdis_of(vm)
        fill_some(here, [vdi])
        text = here.job_text().replace("[store]", '[store]\nchunk-size = "1MiB"\ncompression = "none"')
        job = parse_job(text, "f", "j")
        await here.run(job)
        here.simulator.guest(vdi).write(5 * MiB + 70_000, b"x")
        state = here.content(vdi)
        await here.run(job)
        assert [finished.read for finished in here.finished()] == [MiB]
        assert await here.restored(here.store.points()[-1]) == [state]


@pytest.mark.parametrize(
    "release", [XCP_NG_8_2, XENSERVER_7_6, XENSERVER_7_1], ids=lambda release: f"{release.brand} {release.version}"
)
async def test_older_pools_work_as_far_as_they_can(tmp_path: Path, release: Release):
    async with site(tmp_path, Options(release=release)) as here:
        vm = here.simulator.make_vm("web", SIZES, names=["root", "scratch"])
        vdis = here.simulator.vdis_of(vm)
        fill_some(here, vdis)
        job = here.job(selector='name = "web"\nexclude-disks = ["scratch"]')
        for _ in range(2):
            assert (await here.run(job)).exit_code == 0, here.events
        assert [plan.mode for plan in here.planned()] == ["incremental" if release.cbt else "full"]
        assert len(here.snapshots()) == (1 if release.cbt else 0)
        assert await here.restored(here.store.points()[-1]) == [here.content(vdis[0])]


async def test_a_tpm_that_may_not_be_read_is_said_and_the_rest_is_backed_up(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [2 * MiB])
        here.simulator.pool.database.create("VTPM", {"VM": vm, "is_unique": False})
        here.simulator.faults.arm(CallFault("VTPM.get_contents", "RBAC_PERMISSION_DENIED", ("vtpm.get_contents", "no")))
        assert (await here.run()).exit_code == 0
        assert any("TPM" in note for note in here.notes())


async def test_restored_metadata_is_for_its_owner_only(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("../../web", [MiB])
        await here.run()
        folder = tmp_path / "out"
        files = await restore_to_files(here.store, here.store.point("latest"), folder, emit=here.events.append)
        assert {path.parent for path in folder.iterdir()} == {folder}
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        assert [path.stat().st_size for path in files] == [MiB]


async def test_a_selector_that_selects_nothing_is_said(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [MiB])
        job = here.job(selector='name = "web"\n[[vms]]\ntag = "gone"')
        assert (await here.run(job)).exit_code == 0
        assert any("vms[1]" in note for note in here.notes())


@pytest.mark.parametrize("strategy", ["cbt", "xva"])
async def test_what_the_store_has_lost_is_read_again_without_being_told(tmp_path: Path, strategy: str):
    async with site(tmp_path) as here:
        job = here.job(f'[backup]\nstrategy = "{strategy}"\n')
        vdis = here.simulator.vdis_of(here.simulator.make_vm("web", SIZES))
        fill_some(here, vdis)
        states = []
        for _ in range(2):
            states.append([here.content(vdi) for vdi in vdis])
            assert (await here.run(job)).exit_code == 0
        (spoilt, *_) = sorted((here.folder / "store" / "packs").rglob("*.d"), key=lambda path: -path.stat().st_size)
        spoilt.chmod(0o644)
        data = bytearray(spoilt.read_bytes())
        data[5000:5100] = bytes(100)
        spoilt.write_bytes(data)
        losses = here.store.repair().losses
        assert losses
        (concerned,) = {loss.position for loss in losses}
        for vdi in vdis:
            here.simulator.guest(vdi).scatter(2, 4096)
        states.append([here.content(vdi) for vdi in vdis])
        assert (await here.run(job)).exit_code == 0
        plan = here.planned()[int(concerned)]
        assert plan.mode == "full"
        assert "the store has lost a part of its last state" in str(plan.reason)
        assert here.store.repair().losses == (), "older points have the same content"
        assert list(here.store.verify(deep=True)) == []
        assert [await here.restored(point) for point in here.store.points()] == states
        assert (await here.run(job)).exit_code == 0
        assert {plan.mode for plan in here.planned()} == {"incremental"}
