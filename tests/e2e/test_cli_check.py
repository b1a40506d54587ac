"""`mover check` before pools, stores and jobs that are wrong in one way each: it finds that, and changes nothing."""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from mover.check import Finding, check_job, verdict
from mover.job import parse_job
from mover.simulator import XENSERVER_7_1, Options
from mover.simulator.faults import NbdFault
from mover.simulator.sr import allowed_operations, driver_features
from protocol.nbd import Patience as NbdPatience
from protocol.secret import Secret
from protocol.xapi import Patience, Trust, connect
from tests import fork_server
from tests.pool_fixtures import MiB, Site, fill_some, site


def of(findings: Sequence[Finding], check: str, *, bad: bool = True) -> list[Finding]:
    """The findings of one check; those that complain if `bad`."""
    return [f for f in findings if f.check == check and (not bad or f.level in ("warning", "error"))]


def only(findings: Sequence[Finding], *checks: str) -> list[Finding]:
    """All complaints, which have to be of these checks."""
    found = [f for f in findings if f.level in ("warning", "error")]
    assert {f.check for f in found} == set(checks), findings
    return found


async def look(here: Site, more: str = "", **options) -> list[Finding]:
    return await check_job(here.job(more), **options)


async def test_a_pool_that_is_well_and_nothing_is_changed(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [8 * MiB, 4 * MiB])
        before = {
            kind: dict(here.simulator.pool.database.items(kind)) for kind in ("VM", "VDI", "VBD", "network", "task")
        }
        findings = await look(here)
        assert only(findings) == []
        assert verdict(findings) == 0
        after = {kind: dict(here.simulator.pool.database.items(kind)) for kind in before}
        assert after == before
        assert not (tmp_path / "store").exists()
        told = [f for f in findings if f.check == "outlook"]
        assert [(f.vm, f.disk) for f in told] == [("web", "0"), ("web", "1")]
        assert all("in full over NBD" in f.what and "first backup" in f.what for f in told)
        assert len([f for f in findings if f.check == "nbd-server" and "TLS" in f.what]) == 2
        assert [f.what for f in findings if f.check == "cbt"] == [
            "CBT is off; the next run turns it on and reads in full"
        ] * 2
        await here.run()
        findings = await look(here)
        assert only(findings) == []
        assert all("incrementally" in f.what for f in findings if f.check == "outlook")
        assert [f.what for f in findings if f.check == "cbt"] == ["CBT is on"] * 2


async def test_no_purpose_and_the_command_that_fixes_it(tmp_path: Path):
    async with site(tmp_path, Options(nbd="none")) as here:
        here.simulator.make_vm("web", [4 * MiB])
        findings = await look(here)
        (found,) = only(findings, "nbd-purpose")
        database = here.simulator.pool.database
        (network,) = [r for _, r in database.items("network") if r["PIFs"]]
        assert found.level == "warning"
        assert found.fix == f"xe network-param-add param-name=purpose param-key=nbd uuid={network['uuid']}"
        assert "over HTTP" in next(f.what for f in findings if f.check == "outlook")
        assert verdict(findings) == 41


async def test_both_purposes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The run tries as often as ever to reach a server that refuses it, without pauses.
    monkeypatch.setattr(NbdPatience, "pause", lambda self, failures: 0.0)
    async with site(tmp_path, Options(nbd="both")) as here:
        fill_some(here, here.simulator.vdis_of(here.simulator.make_vm("web", [4 * MiB])))
        findings = await look(here)
        (found,) = only(findings, "nbd-purpose")
        assert found.level == "error"
        assert "param-remove param-name=purpose param-key=insecure_nbd uuid=" in str(found.fix)
        assert verdict(findings) == 40
        assert (await here.run()).exit_code != 0


async def test_plain_nbd_and_plain_http(tmp_path: Path):
    async with site(tmp_path, Options(nbd="insecure", tls=False)) as here:
        here.simulator.make_vm("web", [4 * MiB])
        findings = await look(here)
        only(findings, "nbd-purpose", "transport")
        assert "in the clear" in of(findings, "transport")[0].what
        assert len([f for f in findings if f.check == "nbd-server" and "plain" in f.what]) == 2


async def test_a_network_that_does_not_reach_the_disk(tmp_path: Path):
    async with site(tmp_path, Options(local_sr=True)) as here:
        database = here.simulator.pool.database
        (local,) = [ref for ref, r in database.items("SR") if r["name_label"] == "Local storage"]
        here.simulator.make_vm("web", [4 * MiB], sr=local)
        last = here.simulator.pool.hosts[-1]
        for pif in database.get("host", last.ref)["PIFs"]:
            database.update("PIF", pif, currently_attached=False)
        (found,) = only(await look(here), "nbd-reach")
        assert database.get("host", last.ref)["name_label"] in found.what
        assert (found.vm, found.disk) == ("web", "0")


async def test_what_a_job_does_not_use_is_not_complained_of(tmp_path: Path):
    """Streams over HTTP need neither CBT nor NBD; fulls over HTTP say nothing about the networks."""
    async with site(tmp_path, Options(nbd="none", sr_without_cbt=True)) as here:
        here.simulator.make_vm("web", [4 * MiB])
        assert only(await look(here, '[backup]\nstrategy = "xva"\n')) == []
    async with site(tmp_path / "2") as here:
        here.simulator.make_vm("web", [4 * MiB])
        findings = await look(here, '[backup]\nfull-read = "raw"\n')
        assert only(findings) == []
        assert "in full over HTTP" in next(f.what for f in findings if f.check == "outlook")


async def test_an_sr_without_cbt_and_a_licence_without(tmp_path: Path):
    async with site(tmp_path, Options(sr_without_cbt=True)) as here:
        here.simulator.make_vm("web", [4 * MiB])
        (found,) = only(await look(here), "cbt")
        assert "the SR Shared storage (ext) has no CBT" in found.what
    async with site(tmp_path / "2", Options(restrictions={"restrict_cbt": "true"})) as here:
        here.simulator.make_vm("web", [4 * MiB])
        findings = await look(here)
        only(findings, "licence", "cbt")
        assert "LICENCE_RESTRICTION" in of(findings, "licence")[0].what


async def test_a_licence_without_memory(tmp_path: Path):
    async with site(tmp_path, Options(restrictions={"restrict_checkpoint": "true"})) as here:
        here.simulator.make_vm("web", [4 * MiB])
        (found,) = only(await look(here, "[backup]\nmemory = true\n"), "memory")
        assert (found.vm, "restrict_checkpoint" in found.what) == ("web", True)
        assert only(await look(here)) == []


async def test_a_release_before_cbt(tmp_path: Path):
    async with site(tmp_path, Options(release=XENSERVER_7_1)) as here:
        here.simulator.make_vm("web", [4 * MiB])
        (found,) = only(await look(here), "version")
        assert found.what.startswith("XenServer 7.1.0 has neither CBT nor NBD")


async def test_disks_that_cannot_be_snapshotted_or_tracked(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [4 * MiB] * 3)
        database = here.simulator.pool.database
        vdis = [database.by_uuid("VDI", uuid) for uuid in here.simulator.vdis_of(vm)]
        database.update("VDI", vdis[0], sharable=True)
        database.update("VDI", vdis[1], on_boot="reset")
        database.update("VDI", vdis[2], type="redo_log")
        findings = await look(here)
        only(findings, "sr", "cbt")
        assert [(f.disk, f.level) for f in of(findings, "sr")] == [("0", "error")]
        assert [f.disk for f in of(findings, "cbt")] == ["1", "2"]
        assert of(findings, "sr")[0].fix == "exclude-disks = [0] in [[vms]]"


async def test_an_sr_that_takes_no_snapshots_is_unplugged_or_full(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [64 * MiB])
        database = here.simulator.pool.database
        (sr,) = database.refs("SR")
        without = driver_features(True)
        del without["VDI_SNAPSHOT"]
        database.update("SR", sr, allowed_operations=allowed_operations(without))
        assert "cannot take snapshots" in only(await look(here), "sr")[0].what
        database.update("SR", sr, allowed_operations=allowed_operations(driver_features(True)))
        database.update("SR", sr, physical_size=100 * MiB, physical_utilisation=99 * MiB)
        (found,) = only(await look(here), "sr")
        assert (found.level, "SR_BACKEND_FAILURE_44" in found.what) == ("warning", True)
        database.update("SR", sr, physical_size=1 << 40, physical_utilisation=(1 << 40) - 32 * MiB, type="lvm")
        assert "a snapshot wants 64 MiB" in only(await look(here), "sr")[0].what
        for pbd in database.get("SR", sr)["PBDs"]:
            database.update("PBD", pbd, currently_attached=False)
        findings = await look(here)
        assert [f.level for f in of(findings, "sr")] == ["error"]


async def test_long_chains(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [2 * MiB])
        database = here.simulator.pool.database
        live = database.by_uuid("VDI", here.simulator.vdis_of(vm)[0])
        trust = Trust.pinned(*here.simulator.fingerprints)
        async with connect(here.simulator.url, here.simulator.username, Secret("simulated"), trust) as pool:
            for number in range(19):
                await pool.run("VM.snapshot", vm, str(number))
        (found,) = only(await look(here), "chain")
        assert (found.level, "up to 20 images" in found.what) == ("warning", True)
        # Where base copies have records, as on real SRs, their parents are followed.
        images = [live, *[ref for ref, record in database.items("VDI") if record["is_a_snapshot"]]]
        for length, level in ((20, "warning"), (30, "error")):
            while len(images) < length:
                base_copy = dict(database.get("VDI", images[1])) | {"is_a_snapshot": False, "sm_config": {}}
                del base_copy["uuid"]
                images.append(database.create("VDI", base_copy))
            for ref, parent in pairwise(images):
                database.update("VDI", ref, sm_config={"vhd-parent": database.get("VDI", parent)["uuid"]})
            (found,) = only(await look(here), "chain")
            assert (found.level, f"has {length} images" in found.what) == (level, True)


async def test_nbd_servers_that_are_away_full_or_somebody_else(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        here.simulator.faults.arm(NbdFault("refuse", host=1))
        (found,) = only(await look(here), "nbd-server")
        address = here.simulator.pool.hosts[1].address
        assert (found.level, address in found.what) == ("warning", True)
        first, second = here.simulator.pool.hosts
        first.certificate, second.certificate = second.certificate, first.certificate
        findings = await look(here)
        only(findings, "certificate")
        assert verdict(findings) == 40


async def test_connections_that_others_take(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = here.simulator.make_vm("web", [2 * MiB])
        pool = here.simulator.pool
        (vdi,) = [pool.database.by_uuid("VDI", uuid) for uuid in here.simulator.vdis_of(vm)]
        for _ in range(9):
            pool.control_domain_vbd(vdi, pool.hosts[1], "RO")
        (found,) = only(await look(here), "nbd-connections")
        assert "about 7 of its 16 NBD connections are free" in found.what
        assert only(await look(here, "[limits]\nnbd-connections-per-host = 4\n")) == []


async def test_a_vm_that_is_blocked_moving_or_not_there(tmp_path: Path):
    async with site(tmp_path) as here:
        findings = await look(here)
        assert [f.what for f in only(findings, "pool")] == ["the job test selects no VM of the pool"]
        vm = here.simulator.make_vm("web", [2 * MiB])
        here.simulator.pool.database.update("VM", vm, blocked_operations={"snapshot": "hands off"})
        (found,) = only(await look(here), "vm")
        assert (found.level, "hands off" in found.what) == ("error", True)
        here.simulator.pool.database.update(
            "VM", vm, blocked_operations={}, current_operations={"OpaqueRef:1": "migrate_send"}
        )
        (found,) = only(await look(here), "vm")
        assert (found.level, "being moved" in found.what) == ("warning", True)
        here.simulator.pool.database.update("VM", vm, current_operations={})
        (found,) = only(await look(here, '[[vms]]\ntag = "nobody"\n'), "selection")
        assert "vms[1]" in found.what
        (found,) = only(await look(here, '[backup]\nmode = "incremental"\n'), "mode")
        assert "first backup of this disk" in found.what


async def test_credentials_and_a_pool_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A pool that is away is tried as often as ever, after shorter pauses.
    monkeypatch.setattr("mover.run.Patience", partial(Patience, first_wait=0.01))
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        job = here.job()
        (tmp_path / "secret").write_text("wrong\n")
        (found,) = only(await check_job(job), "pool")
        assert "SESSION_AUTHENTICATION_FAILED" in found.what
        assert "password" in str(found.fix)
        (tmp_path / "secret").chmod(0o644)
        (found,) = only(await check_job(job), "secret")
        assert "chmod 600" in str(found.fix)
    (tmp_path / "secret").chmod(0o600)
    findings = await check_job(job)
    (found,) = only(findings, "pool")
    assert "cannot reach the pool" in found.what
    assert [f.what.endswith("free") for f in findings if f.check == "space"] == [True], "nobody knows for how much"


async def test_a_pool_whose_certificate_is_not_the_one_that_the_job_names(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        text = here.job_text()
        for pin in here.simulator.fingerprints:
            text = text.replace(pin, "sha256:" + "ab" * 32)
        (found,) = only(await check_job(parse_job(text, "job.toml", "test")), "pool")
        assert f"it shows the certificate {here.simulator.fingerprint}" in found.what
        assert found.fix == "put the right fingerprint or ca-file into [pool]"


@pytest.mark.parametrize(
    ("more", "check", "level", "words"),
    [
        ('[hooks]\npre-snapshot = ["/nonexistent/freeze"]\n', "hook", "error", "does not exist"),
        ('[hooks]\npost-snapshot = ["{folder}/thaw"]\n', "hook", "error", "is not executable"),
        ('[hooks]\npre-snapshot = ["/no/freeze"]\non-failure = "continue"\n', "hook", "warning", "does not exist"),
        ("[retention]\nkeep-last = 1\n", "retention", "warning", "one restore point"),
        ('[report]\nlog = "{folder}/thaw/x.jsonl"\n', "report", "error", "log of [report]"),
        ('[report]\nprometheus = "/nonexistent/x.prom"\n', "report", "warning", "prometheus of [report]"),
    ],
)
async def test_what_is_wrong_on_this_machine(tmp_path: Path, more: str, check: str, level: str, words: str):
    (tmp_path / "thaw").write_text("#!/bin/sh\n")
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        (found,) = only(await look(here, more.replace("{folder}", str(tmp_path))), check)
        assert (found.level, words in found.what) == (level, True), found


async def test_stores_that_are_damaged(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        await here.run()
        (point,) = [path for path in (tmp_path / "store" / "points").rglob("*") if path.is_file()]
        content = point.read_bytes()
        point.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (found,) = only(await look(here), "store")
        assert (found.level, "is damaged" in found.what) == ("warning", True)
        point.write_bytes(content)
        (tmp_path / "store" / "store.json").write_text("rubbish")
        (found,) = only(await look(here), "store")
        assert found.level == "error"


async def test_a_store_that_cannot_be_reached_is_said_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("S3_SECRET", "x")
    there = 'url = "s3://bucket/mover"\nendpoint = "http://127.0.0.1:9"\naccess-key-id = "me"\n'
    there += 'secret-access-key-env = "S3_SECRET"\nretry-for = "1s"'
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        text = here.job_text().replace(f'url = "file://{tmp_path}/store"', there)
        findings = await check_job(parse_job(text, "job.toml", "test"))
        (found,) = only(findings, "store")
        assert (found.level, "cannot be connected to" in found.what) == ("error", True)
        assert [f.disk for f in findings if f.check == "outlook"] == ["0"]


async def test_a_passphrase_that_cannot_be_read_is_told_of_once(tmp_path: Path):
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [4 * MiB])
        text = here.job_text().replace("[[vms]]", f'passphrase-file = "{tmp_path}/none"\n[[vms]]', 1)
        (found,) = only(await check_job(parse_job(text, "job.toml", "test")), "secret")
        assert (found.level, "the store's passphrase" in found.what) == ("error", True)


async def test_no_room(tmp_path: Path):
    """A disk larger than anything this machine has, on a store that is not there yet."""
    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 << 40])
        (found,) = only(await look(here), "space")
        assert "free; the next run reads up to 2 TiB" in found.what


def test_the_command(tmp_path: Path):
    """Text, JSON and exit code of the command itself, with a password that anybody could read."""
    secret = tmp_path / "secret"
    secret.write_text("correct-horse")
    secret.chmod(0o644)
    job = tmp_path / "job.toml"
    job.write_text(
        f'[pool]\nurl = "https://127.0.0.1:1"\nusername = "root"\npassword-file = "{secret}"\n'
        f'[store]\nurl = "{tmp_path}/store"\n[[vms]]\nall = true\n'
    )
    command = [sys.executable, "-m", "mover", "check", str(job)]
    done = fork_server.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert done.returncode == 40, done.stderr
    assert f"ERROR    secret: the pool's password: {secret} can be read by others\n" in done.stdout
    assert f"         fix: chmod 600 {secret}\n" in done.stdout
    assert "correct-horse" not in done.stdout
    assert done.stdout.splitlines()[-1] == "1 errors, 0 warnings"
    assert done.stderr == ""
    told = fork_server.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    answer = json.loads(told.stdout)
    assert (told.returncode, answer["exit_code"]) == (40, 40)
    (error,) = [finding for finding in answer["findings"] if finding["level"] == "error"]
    assert set(error) == {"level", "check", "what", "vm", "disk", "fix"}
