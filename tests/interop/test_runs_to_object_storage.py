"""A job whose store is a bucket, every step a process of its own: to its end, killed, and with the server gone."""

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

from mover.store import Store
from tests import fork_server
from tests.store_backends import KEY, SECRET, Weed, serving

MiB = 1 << 20
MOVER = [sys.executable, "-m", "mover"]
MOST_MEMORY = 256 << 10
# In KiB. A child begins with the peak of its parent: a small process has to start what is measured.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass
class Scene:
    """A pool in a process of its own, with one VM, and a job for it."""

    pool: dict[str, Any]
    folder: Path
    weed: Weed
    prefix: str
    vdi: str = ""

    @property
    def url(self) -> str:
        return f"s3://{self.weed.bucket}/{self.prefix}"

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    @property
    def store(self) -> Store:
        return Store.open(self.url, s3=self.weed.access())

    def write_job(self, key: str = KEY, retry_for: str = "20s") -> None:
        secret = self.folder / "s3-secret"
        secret.touch(mode=0o600)
        secret.write_text(SECRET + "\n")
        self.job.write_text(
            f'[pool]\nurl = "{self.pool["url"]}"\nusername = "root"\npassword-env = "POOL_PASSWORD"\n'
            f'fingerprint = {json.dumps(self.pool["fingerprints"])}\n[[vms]]\nname = "web"\n'
            f'[store]\nurl = "{self.url}"\nendpoint = "{self.weed.endpoint}"\naccess-key-id = "{key}"\n'
            f'secret-access-key-file = "{secret}"\nretry-for = "{retry_for}"\n'
        )

    def tell(self, operation: str, **arguments: Any) -> Any:
        body = json.dumps({"op": operation, **arguments}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.pool["steering"], body), timeout=60) as answer:
            return json.load(answer)

    def disk(self) -> bytes:
        self.tell("dump", vdi=self.vdi, path=str(self.folder / "dump"))
        return (self.folder / "dump").read_bytes()

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return fork_server.Popen(
            [*MOVER, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "POOL_PASSWORD": self.pool["password"], **environment},
        )

    def mover(self, *arguments: object, code: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        out, said = process.communicate(timeout=100)
        assert process.returncode == code, said
        assert SECRET not in out + said
        return out if code == 0 else said

    def restored(self, point: str = "latest") -> bytes:
        (file,) = self.mover("restore", self.job, point, "--to", self.folder / f"out-{point}").splitlines()
        return Path(file).read_bytes()


@contextmanager
def scene(folder: Path, weed: Weed, size: int) -> Iterator[Scene]:
    with fork_server.Popen(
        [*MOVER, "simulate", "--dir", str(folder / "pool"), "--json"], stdout=subprocess.PIPE, text=True
    ) as pool:
        try:
            assert pool.stdout is not None
            here = Scene(json.loads(pool.stdout.readline()), folder, weed, f"runs/{folder.name}")
            here.vdi = here.tell("make_vm", name="web", sizes=[size])["vdis"][0]
            here.write_job()
            yield here
        finally:
            pool.terminate()


def test_run_list_verify_restore_prune(tmp_path: Path, weed: Weed) -> None:
    with scene(tmp_path, weed, 48 * MiB) as here:
        here.tell("fill", vdi=here.vdi, offset=0, length=46 * MiB, kind="random")
        here.mover("run", here.job)
        assert here.restored() == here.disk()
        here.tell("fill", vdi=here.vdi, offset=2 * MiB, length=40 * MiB, kind="random")
        here.mover("run", here.job)
        disk = here.disk()
        points = json.loads(here.mover("list", here.job, "--json"))
        assert [point["disks"][0]["mode"] for point in points] == ["full", "incremental"]
        assert "incremental" in here.mover("show", here.job, "latest")
        assert here.mover("verify", here.job, "--deep") == "no damage found\n"
        (tmp_path / "out-latest").rename(tmp_path / "before")
        assert here.restored() == disk
        here.store.forget(here.store.points())
        before = sum(size for _, size in weed.backend(here.prefix).list("packs/"))
        here.mover("prune", here.url, **weed.environment())
        assert sum(size for _, size in weed.backend(here.prefix).list("packs/")) < before - 30 * MiB
        (tmp_path / "out-latest").rename(tmp_path / "before too")
        assert here.restored() == disk
        assert here.mover("verify", here.url, "--deep", **weed.environment()) == "no damage found\n"


def test_memory_is_bounded(tmp_path: Path, weed: Weed) -> None:
    with scene(tmp_path, weed, 260 * MiB) as here:
        here.tell("fill", vdi=here.vdi, offset=0, length=250 * MiB, kind="random")
        for verb in (
            ["run", here.job],
            ["restore", here.job, "latest", "--to", tmp_path / "out"],
            ["verify", here.job, "--deep"],
        ):
            command = [*MOVER, *map(str, verb), "--progress", "none"]
            environment = {**os.environ, "POOL_PASSWORD": here.pool["password"]}
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, env=environment
            )
            assert done.returncode == 0, done.stderr
            assert int(done.stdout.splitlines()[-1]) <= MOST_MEMORY, command


def test_killed_while_it_uploads(tmp_path: Path, weed: Weed) -> None:
    with scene(tmp_path, weed, 80 * MiB) as here:
        here.tell("fill", vdi=here.vdi, offset=0, length=8 * MiB, kind="random")
        here.mover("run", here.job)
        kept, point = here.disk(), here.store.points()[0].id
        here.tell("fill", vdi=here.vdi, offset=8 * MiB, length=70 * MiB, kind="random")
        for moment in (1, 3):
            process = here.start("run", here.job, "--progress", "json")
            assert process.stderr is not None
            for line in process.stderr:
                moment -= line.startswith('{"type":"disk.progress"') or '"disk.progress"' in line
                if moment == 0:
                    process.send_signal(signal.SIGKILL)
                    break
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert here.restored(point) == kept
            assert list(here.store.verify()) == []
        here.mover("run", here.job)
        assert here.restored() == here.disk()
        assert list(here.store.verify(deep=True)) == []


@pytest.mark.slow
def test_the_server_goes_away_while_it_runs(tmp_path: Path) -> None:
    with serving() as own, scene(tmp_path, own, 80 * MiB) as here:
        here.tell("fill", vdi=here.vdi, offset=0, length=75 * MiB, kind="random")
        here.write_job(retry_for="2s")
        process = here.start("run", here.job, "--progress", "json")
        assert process.stderr is not None
        for line in process.stderr:
            if '"disk.progress"' in line:
                own.stop()
                break
        _, said = process.communicate(timeout=100)
        assert process.returncode == 10, said
        assert own.endpoint in said and "cannot be connected to" in said and "Traceback" not in said
        assert own.endpoint in here.mover("list", here.job, code=10)
        own.start()
        here.write_job()
        here.mover("run", here.job)
        assert here.restored() == here.disk()
        assert list(here.store.verify(deep=True)) == []


def test_who_may_not_write(tmp_path: Path, weed: Weed) -> None:
    with scene(tmp_path, weed, MiB) as here:
        here.write_job(key="somebody")
        said = here.mover("run", here.job, code=10)
        assert weed.endpoint in said and "InvalidAccessKeyId" in said and "hint: check access key" in said
        said = here.mover("list", "s3://no-such-bucket/x", code=10, **weed.environment())
        assert "no-such-bucket" in said and "make the bucket first" in said
        said = here.mover("list", f"s3://{weed.bucket}/nothing", code=10, **weed.environment())
        assert "there is no store" in said


@pytest.mark.parametrize("source", ["profile", "environment"])
def test_credentials_as_the_tools_of_aws_have_them(tmp_path: Path, weed: Weed, source: str) -> None:
    Store.create(f"s3://{weed.bucket}/{source}", s3=weed.access())
    with scene(tmp_path, weed, MiB) as here:
        environment = weed.environment()
        if source == "profile":
            (tmp_path / "credentials").write_text(
                "[default]\naws_access_key_id = nobody\n[backup]\n"
                f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
            )
            (tmp_path / "config").write_text(f"[profile backup]\nregion = here\nendpoint_url = {weed.endpoint}\n")
            environment = {
                "AWS_PROFILE": "backup",
                "AWS_CONFIG_FILE": str(tmp_path / "config"),
                "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            }
        assert here.mover("verify", f"s3://{weed.bucket}/{source}", **environment) == "no damage found\n"
