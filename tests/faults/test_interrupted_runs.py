"""`mover run` as a process, interrupted at every kind of moment: committed points stay whole, the next run is clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from mover.store import Store
from tests import fork_server

KiB = 1 << 10
MiB = 1 << 20
MOVER = [sys.executable, "-m", "mover"]


@dataclass
class Scene:
    """A pool in a process of its own, with one VM, and a job for it."""

    where: dict[str, Any]
    folder: Path
    vdis: list[str]

    def tell(self, operation: str, **arguments: Any) -> Any:
        body = json.dumps({"op": operation, **arguments}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.where["steering"], body), timeout=60) as answer:
            return json.load(answer)

    def dump(self, vdi: str) -> bytes:
        path = self.folder / "dump"
        self.tell("dump", vdi=vdi, path=str(path))
        return path.read_bytes()

    def start(self) -> subprocess.Popen[str]:
        command = [*MOVER, "run", str(self.folder / "job.toml"), "--progress", "json"]
        return fork_server.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"MOVER_STATE": str(self.folder / "state")},
        )

    def explain(self) -> Any:
        """What `mover explain` says of the VM."""
        command = [*MOVER, "explain", str(self.folder / "job.toml")]
        told = fork_server.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=60).stdout
        (vm,) = json.loads(told)["vms"]
        vm["words"] = fork_server.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        return vm

    def points(self) -> list[Any]:
        return Store.open(self.folder / "store").points() if (self.folder / "store").exists() else []

    def restore(self, point: str) -> list[bytes]:
        out = self.folder / f"out-{point}"
        command = [*MOVER, "restore", str(self.folder / "store"), point, "--to", str(out), "--progress", "none"]
        done = fork_server.run(command, check=True, capture_output=True, text=True, timeout=60)
        return [Path(line).read_bytes() for line in done.stdout.splitlines()]

    def snapshots(self) -> set[str]:
        """The UUIDs of all snapshot VDIs."""
        with self.session() as api:
            return {record["uuid"] for record in api.VDI.get_all_records().values() if record["is_a_snapshot"]}

    @contextmanager
    def session(self) -> Iterator[Any]:
        session = XenAPI.Session(self.where["url"], ignore_ssl=True)
        session.xenapi.login_with_password("root", self.where["password"])
        try:
            yield session.xenapi
        finally:
            session.xenapi.session.logout()


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    command = [*MOVER, "simulate", "--dir", str(folder / "pool"), "--json", "--latency", "0.02"]
    pool = fork_server.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert pool.stdout is not None
        where = json.loads(pool.stdout.readline())
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(where["password"])
        (folder / "job.toml").write_text(
            f'[pool]\nurl = "{where["url"]}"\nusername = "root"\npassword-file = "{folder}/secret"\n'
            f'fingerprint = {json.dumps(where["fingerprints"])}\n[store]\nurl = "{folder}/store"\n'
            '[[vms]]\nname = "web"\n[limits]\nnbd-connections = 1\n'
        )
        here = Scene(where, folder, [])
        here.vdis = here.tell("make_vm", name="web", sizes=[48 * MiB, 4 * MiB])["vdis"]
        for vdi in here.vdis:
            here.tell("fill", vdi=vdi, offset=0, length=4 * MiB, kind="random")
        here.tell("fill", vdi=here.vdis[0], offset=4 * MiB, length=30 * MiB, kind="text")
        yield here
    finally:
        pool.terminate()
        pool.wait(30)


def interrupt(here: Scene, moment: str, count: int, *signals: int) -> tuple[int, str]:
    """Start a run and send it signals once it has said `count` events of the type `moment`."""
    process = here.start()
    said: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if line.startswith("{") and json.loads(line)["type"] == moment:
            count -= 1
            if count == 0:
                for number in signals:
                    process.send_signal(number)
    return process.wait(60), "".join(said)


MOMENTS = [("run.started", 1), ("vm.started", 1), ("disk.planned", 1), ("disk.progress", 2), ("disk.finished", 1)]


def assert_whole(here: Scene, expected: dict[str, list[bytes]], now: list[bytes]) -> None:
    """Points that are new hold `now`, all others what they held before, and nothing is damaged."""
    for point in here.points():
        expected.setdefault(point.id, now)
        assert here.restore(point.id) == expected[point.id]
    if here.points():
        assert list(Store.open(here.folder / "store").verify(deep=True)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_at_every_kind_of_moment(tmp_path: Path, number: signal.Signals):
    with scene(tmp_path) as here:
        expected: dict[str, list[bytes]] = {}
        now = [here.dump(vdi) for vdi in here.vdis]
        for moment, count in MOMENTS:
            code, said = interrupt(here, moment, count, number)
            assert code == (-9 if number == signal.SIGKILL else 128 + number), said
            assert_whole(here, expected, now)
            if number != signal.SIGKILL:
                recorded = {disk.snapshot_uuid for point in here.points() for disk in point.record.disks}
                assert here.snapshots() <= recorded, "a snapshot that no point records was left behind"
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert_whole(here, expected, now)
        newest = here.points()[-1]
        assert here.snapshots() == {disk.snapshot_uuid for disk in newest.record.disks}, "leftovers are swept"


def test_a_vm_that_a_killed_run_had_finished_is_safe_and_not_read_again(tmp_path: Path):
    with scene(tmp_path) as here:
        vdi = here.tell("make_vm", name="web", sizes=[24 * MiB])["vdis"][0]
        here.tell("fill", vdi=vdi, offset=0, length=20 * MiB, kind="random")
        interrupt(here, "vm.finished", 1, signal.SIGKILL)
        safe = {point.record.vm_uuid for point in here.points()}
        assert safe
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        events = [json.loads(line) for line in said.splitlines() if '"disk.finished"' in line]
        assert {event["vm"] for event in events if event["mode"] == "incremental"} == safe
        assert all(event["read"] == 0 for event in events if event["vm"] in safe)


def test_the_second_interrupt_ends_it_at_once_and_the_next_run_cleans_up(tmp_path: Path):
    with scene(tmp_path) as here:
        now = [here.dump(vdi) for vdi in here.vdis]
        code, said = interrupt(here, "disk.progress", 1, signal.SIGINT, signal.SIGINT)
        assert code == 130, said
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert_whole(here, {}, now)
        assert here.snapshots() == {disk.snapshot_uuid for disk in here.points()[-1].record.disks}


LARGE = 256 * MiB


def killed_in_mid_full(here: Scene, vdi: str, least: int) -> None:
    """Kill a run once it has noted down that at least so many bytes of the disk are stored."""
    process = here.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            done = [
                disk.done
                for _, noted in (Store.open(here.folder / "store").unfinished() if "progress" in line else [])
                if noted is not None
                for vm in noted.vms
                for disk in vm.disks
                if disk.vdi_uuid == vdi
            ]
            if max(done, default=0) >= least:
                break
        else:
            pytest.fail("the run ended before anything was noted down")
    finally:
        process.kill()
        process.wait(60)
        process.stderr and process.stderr.close()


@contextmanager
def large_disk(folder: Path) -> Iterator[Scene]:
    """A VM with one disk that takes its time, and a job that notes down often how far it is."""
    with scene(folder) as here:
        here.vdis = here.tell("make_vm", name="large", sizes=[LARGE, 4 * MiB])["vdis"]
        here.tell("fill", vdi=here.vdis[0], offset=0, length=LARGE - 40 * MiB, kind="text")
        here.tell("fill", vdi=here.vdis[1], offset=0, length=MiB, kind="random")
        job = folder / "job.toml"
        text = job.read_text().replace('name = "web"', 'name = "large"')
        job.write_text(text + 'note-every = "0.1s"\n')
        yield here


def somebody_removes_the_snapshot(here: Scene) -> None:
    with here.session() as api:
        snapshots = [ref for ref, record in api.VM.get_all_records().items() if record["is_a_snapshot"]]
        assert len(snapshots) == 1
        api.VM.destroy(snapshots[0])


def finished(said: str) -> dict[str, Any]:
    events = [json.loads(line) for line in said.splitlines() if '"disk.finished"' in line]
    return {event["disk"]: event for event in events}


def test_a_killed_full_goes_on_where_it_was(tmp_path: Path):
    with large_disk(tmp_path) as here:
        then = [here.dump(vdi) for vdi in here.vdis]
        killed_in_mid_full(here, here.vdis[0], 32 * MiB)
        snapshots = here.snapshots()
        assert len(snapshots) == 2
        # What is written meanwhile is not part of the snapshot, whichever part of it is still to be read.
        for offset in (MiB, LARGE - 48 * MiB):
            here.tell("fill", vdi=here.vdis[0], offset=offset, length=MiB, kind="random")
        told = here.explain()
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert "going on from there" in said
        assert here.snapshots() == snapshots, "the killed run's snapshot is the one that is kept"
        large = finished(said)["0"]
        assert large["mode"] == "full"
        assert told["goes_on_with"] == here.points()[-1].record.snapshot_uuid
        outlook = told["disks"][0]
        assert (outlook["mode"], outlook["reason"]) == ("full", "first backup of this disk")
        assert 32 * MiB <= outlook["stored"] == LARGE - outlook["to_read"]
        assert large["read"] <= outlook["to_read"]
        assert [(kept["uuid"], kept["fate"]) for kept in told["snapshots"]] == [
            (told["goes_on_with"], "left by a run that was killed: the next one goes on with it")
        ]
        assert f"goes on with the snapshot {told['goes_on_with']} of a run that was killed" in told["words"]
        assert large["read"] <= LARGE - 40 * MiB - 32 * MiB, "what was stored is not read again"
        assert_whole(here, {}, then)
        assert Store.open(tmp_path / "store").unfinished() == []
        now = [here.dump(vdi) for vdi in here.vdis]
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert finished(said)["0"]["mode"] == "incremental"
        assert here.restore(here.points()[-1].id) == now


def test_a_killed_full_begins_anew_if_its_snapshot_is_gone(tmp_path: Path):
    with large_disk(tmp_path) as here:
        killed_in_mid_full(here, here.vdis[0], 8 * MiB)
        somebody_removes_the_snapshot(here)
        here.tell("fill", vdi=here.vdis[0], offset=MiB, length=MiB, kind="random")
        told = here.explain()
        assert (told["goes_on_with"], told["disks"][0]["stored"]) == (None, 0)
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert "going on from there" not in said
        assert_whole(here, {}, [here.dump(vdi) for vdi in here.vdis])
        assert Store.open(tmp_path / "store").unfinished() == []


def test_an_interrupted_full_leaves_nothing_to_go_on_from(tmp_path: Path):
    with large_disk(tmp_path) as here:
        code, said = interrupt(here, "disk.progress", 4, signal.SIGINT)
        assert code == 130, said
        assert here.snapshots() == set()
        assert Store.open(tmp_path / "store").unfinished() == []


def test_what_a_prune_has_deleted_since_is_read_again(tmp_path: Path):
    with large_disk(tmp_path) as here:
        then = [here.dump(vdi) for vdi in here.vdis]
        killed_in_mid_full(here, here.vdis[0], 32 * MiB)
        store = Store.open(tmp_path / "store")
        # As an earlier prune leaves it, which had waited for the run in vain.
        for lease in (tmp_path / "store" / "lease").iterdir():
            lease.unlink()
        assert store.prune().freed > 16 * KiB
        assert not list((tmp_path / "store" / "packs").rglob("*.d"))
        code, said = interrupt(here, "never", 1)
        assert code == 0, said
        assert_whole(here, {}, then)
