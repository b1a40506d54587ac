"""A job from its first run to restores, every step a process of its own, as an operator has it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_site import MiB, Site, cli_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with cli_site(tmp_path) as here:
        yield here


def test_run_list_show_verify_restore(site: Site):
    made = site.tell("make_vm", name="web [1]", sizes=[24 * MiB, 8 * MiB])
    disks = made["vdis"]
    site.tell("fill", vdi=disks[0], offset=MiB, length=6 * MiB, kind="random")
    site.tell("fill", vdi=disks[1], offset=0, length=2 * MiB, kind="text")

    plan = json.loads(site.mover("run", site.job, "--dry-run", "--json"))
    assert [disk["size"] for disk in plan["vms"][0]["disks"]] == [24 * MiB, 8 * MiB]
    assert "web [1]" in site.mover("run", site.job, "--dry-run")
    first = json.loads(site.mover("run", site.job, "--json", "--progress", "json"))
    site.tell("scatter", vdi=disks[0], count=3, length=4096)
    for position, vdi in enumerate(disks):
        site.tell("dump", vdi=vdi, path=str(site.folder / f"{position}.reference"))
    second = json.loads(site.mover("run", site.job, "--json", "--progress", "plain"))
    for summary, full in ((first, 2), (second, 0)):
        vm = summary["vms"][made["vm"]]
        assert (summary["exit_code"], vm["outcome"], vm["disks"], vm["full_disks"]) == (0, "done", 2, full)
    assert 0 < second["read"] < first["read"]

    points = json.loads(site.mover("list", site.job, "--json"))
    assert [point["id"] for point in points] == [run["vms"][made["vm"]]["point"] for run in (first, second)]
    assert len(site.mover("list", site.job, "web [1]").splitlines()) == 2
    assert "incremental" in site.mover("show", site.job, "latest")
    assert site.mover("verify", site.job, "--deep") == "no damage found\n"

    files = site.mover("restore", site.job, "latest", "--to", site.folder / "out").splitlines()
    for position, file in enumerate(files):
        assert Path(file).read_bytes() == (site.folder / f"{position}.reference").read_bytes()
    restored = json.loads(site.mover("restore", site.job, "latest", "--job", site.job, "--name", "again", "--json"))
    assert restored["name"] == "again"
    assert restored["vm"] != made["vm"]

    log = [json.loads(line) for line in (site.folder / "log" / "job.jsonl").read_text().splitlines()]
    assert [line["type"] for line in log].count("run.finished") == 2
    assert 'mover_run_exit_code{job="job"} 0' in (site.folder / "mover.prom").read_text()
    assert_nothing_leaked(site)


def test_an_interrupted_run_leaves_a_clean_place(site: Site):
    made = site.tell("make_vm", name="web", sizes=[64 * MiB])
    (vdi,) = made["vdis"]
    site.tell("fill", vdi=vdi, offset=0, length=4 * MiB, kind="random")
    site.mover("run", site.job)
    site.tell("fill", vdi=vdi, offset=0, length=64 * MiB, kind="random")
    site.tell("network", latency=0.05, bandwidth=4 * MiB)
    summary, seen = site.interrupted("run", site.job, "--json")
    assert "interrupted; everything is left clean" in seen
    assert (json.loads(summary)["outcome"], json.loads(summary)["exit_code"]) == ("interrupted", 130)
    assert "Traceback" not in seen

    site.tell("network")
    assert len(json.loads(site.mover("list", site.job, "--json"))) == 1
    after = json.loads(site.mover("run", site.job, "--json"))
    assert after["vms"][made["vm"]]["full_disks"] == 0
    site.mover("verify", site.job, "--deep", "--progress", "none")
    (file,) = site.mover("restore", site.job, "latest", "--to", site.folder / "out").splitlines()
    assert hashlib.sha256(Path(file).read_bytes()).digest() == expected(site, vdi)
    assert_nothing_leaked(site)


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "everything is left clean"), (("--keep-partial",), "what is left is among the warnings")],
    ids=["undone", "kept"],
)
def test_an_interrupted_restore_says_whether_anything_is_left(site: Site, options: tuple[str, ...], words: str):
    (vdi,) = site.tell("make_vm", name="web", sizes=[64 * MiB])["vdis"]
    site.tell("fill", vdi=vdi, offset=0, length=64 * MiB, kind="random")
    site.mover("run", site.job)
    site.tell("network", latency=0.05, bandwidth=4 * MiB)
    _, seen = site.interrupted("restore", site.job, "web", "--job", site.job, *options)
    assert f"interrupted; {words}" in seen
    assert ("is kept: VM " in seen) == bool(options)
    assert "Traceback" not in seen


def test_a_vm_that_fails_does_not_stop_the_other_and_the_code_is_3(site: Site):
    names = {site.tell("make_vm", name=name, sizes=[4 * MiB])["vm"]: name for name in ("web-1", "web-2")}
    fault = {"type": "call", "method": "VM.snapshot", "code": "SR_BACKEND_FAILURE_44", "params": ["", "full"]}
    site.tell("faults", faults=[fault])
    summary = json.loads(site.mover("run", site.job, "--json", code=3))
    assert sorted(vm["outcome"] for vm in summary["vms"].values()) == ["done", "failed"]
    (failed,) = [vm for vm in summary["vms"].values() if vm["outcome"] == "failed"]
    assert "SR_BACKEND_FAILURE_44" in failed["error"]
    assert failed["name"] == names[failed["uuid"]]
    assert_nothing_leaked(site)


def expected(site: Site, vdi: str) -> bytes:
    path = site.folder / "expected"
    site.tell("dump", vdi=vdi, path=str(path))
    return hashlib.sha256(path.read_bytes()).digest()


def assert_nothing_leaked(site: Site) -> None:
    """Neither the password nor a session, which an NBD export's name holds too, in anything printed or written."""
    written = [path.read_text() for path in (site.folder / "log").iterdir()]
    written.append((site.folder / "mover.prom").read_text())
    for text in [*site.printed, *written]:
        assert site.pool["password"] not in text
        assert "OpaqueRef:" not in text
        assert "session_id=" not in text
