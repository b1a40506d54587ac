"""Every example of docs/batch.md is run as what it is for would run it, before a simulated pool."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mover.errors import all_errors
from mover.job import parse_job
from tests.cli_site import MiB, Site, cli_site

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "batch.md").read_text()
JOB = "/etc/mover/nightly.toml"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, language
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A pool with one VM, a job with the page's schedules, and `mover` on the path."""
    folder = tmp_path_factory.mktemp("batch")
    with cli_site(folder) as here:
        here.tell("make_vm", name="web", sizes=[2 * MiB])
        with here.job.open("a") as job:
            job.write(blocks("toml")[0])
        program = folder / "bin" / "mover"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mover "$@"\n')
        program.chmod(0o755)
        yield here


def environment(site: Site) -> dict[str, str]:
    path = f"{site.folder}/bin:{os.environ['PATH']}"
    return site.environment() | {"PATH": path, "PYTHONPATH": str(ROOT)}


def here(site: Site, text: str) -> str:
    """The example with this machine's job instead of the page's."""
    assert JOB in text
    return text.replace(JOB, str(site.job))


def run(site: Site, command: list[str], code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=site.folder,
        env=environment(site) | more,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def points(site: Site) -> int:
    return len(list((site.folder / "store" / "points").rglob("*.*"))) if (site.folder / "store").exists() else 0


def test_systemd(site: Site):
    (command,) = blocks("console")
    assert command.startswith("$ ")
    text = here(site, command[2:]).replace("/etc/systemd/system", str(site.folder / "units"))
    written = run(site, ["sh", "-c", text]).stdout.split()
    assert [Path(path).name for path in written] == [
        f"mover-job-{name}.{kind}" for name in ("nightly", "weekly-full") for kind in ("service", "timer")
    ]


def test_systemd_tries_again_after_the_codes_that_the_page_names(site: Site):
    section = PAGE[PAGE.index("## systemd") : PAGE.index("## cron")]
    named = {int(code) for code in re.findall(r"\b(\d+): ", section)}
    service = run(site, ["mover", "units", str(site.job)]).stdout
    prevented = {
        int(code) for line in re.findall(r"^RestartPreventExitStatus=(.*)$", service, re.M) for code in line.split()
    }
    assert named == {error.exit_code for error in all_errors()} - prevented


@pytest.mark.parametrize("line", [line for block in blocks("crontab") for line in block.splitlines()])
def test_cron(site: Site, line: str):
    fields = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[0-9*]+", field) for field in fields[:5])
    assert "%" not in fields[5], "cron makes a new line of it"
    before = points(site)
    done = run(site, ["/bin/sh", "-c", here(site, fields[5])])
    assert points(site) == before + 1
    assert ("web\tdone" in done.stdout) != ("$(" in line)
    assert done.stderr == ""


def test_kubernetes(site: Site):
    (text,) = blocks("yaml")
    cron_job = yaml(text)
    spec = cron_job["spec"]["jobTemplate"]["spec"]
    assert (cron_job["apiVersion"], cron_job["kind"]) == ("batch/v1", "CronJob")
    assert cron_job["spec"]["schedule"] == "30 1 * * *"
    (container,) = spec["template"]["spec"]["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    transient = {error.exit_code for error in all_errors() if error.transient}
    final = set(rule["onExitCodes"]["values"])
    permanent = {error.exit_code for error in all_errors()} - transient
    assert final <= permanent
    # What failed for a store, a pool or a bug may work next time; codes from 25 on are of other commands and signals.
    assert {code for code in permanent - final if code < 25} == {1, 10, 23}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    command = [here(site, word) if word == JOB else word for word in container["command"] + container["args"]]
    state = {variable["name"]: str(site.folder / "state") for variable in container["env"]}
    before = points(site)
    done = run(site, command, **state)
    assert points(site) == before + 1
    assert '"type":"run.finished"' in done.stderr


def yaml(text: str) -> Any:
    """Read by PyYAML of the distribution: this project has no use for YAML."""
    script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    if "No module named 'yaml'" in done.stderr or done.returncode == 127:
        pytest.skip("PyYAML is not there (Debian: python3-yaml)")
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.replace("true", "True").replace("null", "None"))


def test_slurm(site: Site):
    (script,) = blocks("bash")
    file = site.folder / "nightly.sh"
    file.write_text(here(site, script))
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    before = points(site)
    done = run(site, ["bash", str(file)])
    assert points(site) == before + 1
    assert "web\tdone" in done.stdout


def test_slurm_puts_a_job_back_into_the_queue_if_another_one_runs(site: Site):
    (script,) = blocks("bash")
    file = site.folder / "again.sh"
    file.write_text(here(site, script))
    scontrol = site.folder / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {site.folder}/requeued\n')
    scontrol.chmod(0o755)
    lock = (
        "from mover.lock import run_lock\nimport sys\n"
        "with run_lock('job'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(site),
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = run(site, ["bash", str(file)], 75, SLURM_JOB_ID="4711")
        holder.stdin.close()
    assert "another run of the job job is active" in done.stderr
    assert (site.folder / "requeued").read_text() == "requeue 4711\n"


def test_slurm_ends_a_run_cleanly(site: Site):
    """What Slurm does two minutes before the time is over."""
    (script,) = blocks("bash")
    file = site.folder / "ended.sh"
    stopped = (
        "#!/bin/sh\ntrap 'sleep 0.1; echo cleaned up; exit 143' TERM\necho started\nwhile :; do sleep 0.05; done\n"
    )
    program = site.folder / "slow" / "mover"
    program.parent.mkdir()
    program.write_text(stopped)
    program.chmod(0o755)
    file.write_text(script)
    path = f"{program.parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", str(file)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path, "SLURM_JOB_ID": ""}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "cleaned up\n"
        assert process.wait(60) == 143


def test_airflow(site: Site):
    (code,) = blocks("python")
    tree = ast.parse(code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    operators = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "BashOperator"]
    given = [{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg != "retry_delay"} for call in operators]
    tasks = {task["task_id"]: task for task in given}
    assert list(tasks) == ["check", "run", "prune"]
    assert tasks["run"]["skip_on_exit_code"] == 75
    before = points(site)
    for task in tasks.values():
        run(site, ["bash", "-c", here(site, task["bash_command"])])
    assert points(site) == before + 1


def test_the_pages_schedules_are_a_jobs():
    head = '[pool]\nurl = "https://x"\nusername = "u"\npassword-env = "P"\n[store]\nurl = "/s"\n[[vms]]\nall = true\n'
    job = parse_job(head + blocks("toml")[0], "job.toml", "nightly")
    assert [(schedule.name, schedule.mode) for schedule in job.schedules] == [
        ("nightly", "auto"),
        ("weekly-full", "full"),
    ]
