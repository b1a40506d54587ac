"""`mover prune JOB` applies the job's retention, to that job's points alone; `mover prune STORE` forgets nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from mover.store import Store
from tests import fork_server
from tests.store_fixtures import noise, point_of, write_disk

DAY = 86_400.0


def prune(*arguments: object) -> subprocess.CompletedProcess[str]:
    return fork_server.run(
        [sys.executable, "-m", "mover", "prune", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
    )


def test_a_jobs_retention_is_applied_to_its_own_points(tmp_path: Path):
    store = Store.create(tmp_path / "store")
    for day in range(5):
        for job in ("job", "other"):
            data = noise(f"{job} {day}", 3 * 65536)
            with store.writer() as writer:
                point = point_of(write_disk(writer, data), len(data), 1e9 + day * DAY, "web")
                writer.commit(msgspec.structs.replace(point, job=job))
    job = tmp_path / "job.toml"
    job.write_text(
        '[pool]\nurl = "https://127.0.0.1:1"\nusername = "root"\npassword-env = "P"\n'
        f'[store]\nurl = "{tmp_path}/store"\n[[vms]]\nall = true\n[retention]\nkeep-last = 2\n'
    )

    def left(name: str) -> list[float]:
        return [p.record.created for p in Store.open(tmp_path / "store").points() if p.record.job == name]

    would = json.loads(prune(job, "--dry-run", "--json").stdout)
    assert (would["dry_run"], len(would["forgotten"]), len(left("job"))) == (True, 3, 5)
    assert json.loads(prune(tmp_path / "store", "--json").stdout)["forgotten"] == []
    done = prune(job, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["forgotten"] == would["forgotten"]
    assert left("job") == [1e9 + 3 * DAY, 1e9 + 4 * DAY]
    assert len(left("other")) == 5
    assert list(Store.open(tmp_path / "store").verify(deep=True)) == []
