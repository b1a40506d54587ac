"""The benchmark measures, notices a wrong copy, and tells of peers that are not there. No figure counts here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.inputs import make_image

ROOT = Path(__file__).parents[2]
MIB = 64


class Run(NamedTuple):
    code: int
    said: str
    report: dict[str, Any]


def find(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find("mkfs.ext4")
    folder = tmp_path_factory.mktemp("bench")
    make_image(folder, MIB)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with nothing but what the benchmark cannot do without."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("nbdkit", "bash", "git", "stat", "mkfs.ext4"):
        (folder / name).symlink_to(find(name))
    return folder


def bench(work: Path, programs: Path, *arguments: str) -> Run:
    figures = programs.parent / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--tiny", f"--mib={MIB}", f"--json={figures}", f"--work={work}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": str(programs), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr, json.loads(figures.read_text()) if figures.exists() else {})


def test_a_scenario_is_measured_and_the_peer_that_is_missing_named(work: Path, programs: Path) -> None:
    run = bench(work, programs, "--only", "unchanged")
    assert run.code == 0, run.said
    [case] = run.report["scenarios"]["unchanged"]
    assert case["good"] and len(case["seconds"]["ours"]) == 1
    assert case["absent"] == ["nbdcopy"]
    assert "PEER MISSING nbdcopy" in run.said
    assert run.report["machine"]["cpus"] >= 1


def test_a_copy_that_is_wrong_counts_as_failed(work: Path, programs: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered.raw"
    shutil.copyfile(make_image(work, MIB), altered)
    with altered.open("r+b") as file:
        file.seek(17 << 20)
        byte = file.read(1)[0]
        file.seek(17 << 20)
        file.write(bytes([byte ^ 1]))
    real = (programs / "nbdkit").readlink()
    (programs / "nbdkit").unlink()
    script = f'#!{programs / "bash"}\n[ "$1" = -f ] || exec {real} "$@"\nexec {real} -f file {altered}\n'
    (programs / "nbdkit").write_text(script)
    (programs / "nbdkit").chmod(0o700)
    run = bench(work, programs, "--only", "unchanged")
    assert run.code == 1, run.said
    [case] = run.report["scenarios"]["unchanged"]
    assert not case["good"]
    assert "the block at byte" in case["failures"][0]


def test_a_figure_without_a_peer_is_told_for_each_case(work: Path, programs: Path) -> None:
    run = bench(work, programs, "--only", "codec")
    assert run.code == 0, run.said
    image, noise = run.report["scenarios"]["codec"]
    assert image["good"] and noise["good"]
    assert {"zstd 1", "BLAKE3"} == set(noise["seconds"]) < set(image["seconds"])
    assert all(check["met"] and check["value"] > 0 for check in image["checks"] + noise["checks"])


def test_a_scenario_that_nobody_knows_is_refused(work: Path, programs: Path) -> None:
    run = bench(work, programs, "--only", "nonsense")
    assert run.code == 2
    assert "nonsense" in run.said
