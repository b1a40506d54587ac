"""Units of `mover units` before systemd's own programs: it takes every line, every calendar, every command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mover.cli.units import check_calendars
from mover.errors import JobError
from mover.job import parse_job
from mover.systemd import quoted, units
from tests import fork_server

JOB = """
[pool]
url = "https://xcp-1.example.org"
username = "backup"
{password}
[store]
url = "file://{folder}/store"
[[vms]]
all = true
[[schedules]]
name = "nightly"
calendar = "*-*-* 01:30:00"
[[schedules]]
name = "weekly-full"
mode = "full"
calendar = "Sun *-*-* 03:00:00 Europe/Vienna"
[[schedules]]
name = "by-hand"
{more}
"""


def needs_systemd() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not there (Debian: systemd)")
    return program


def job_text(folder: Path, more: str = "", password: str = 'password-file = "/etc/mover/xcp.secret"') -> str:
    return JOB.format(folder=folder, more=more, password=password)


def made(folder: Path, text: str, *options: str, **environment: str) -> list[Path]:
    """Run the command; the files it wrote."""
    (folder / "a job.toml").write_text(text)
    done = fork_server.run(
        [sys.executable, "-m", "mover", "units", str(folder / "a job.toml"), "--to", str(folder / "units"), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    assert "daemon-reload" in done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("more", "password", "options"),
    [
        ("", 'password-file = "/etc/mover/xcp.secret"', ()),
        ("", 'password-env = "XCP"', ()),
        ('[hooks]\npre-snapshot = ["/bin/true"]\n', 'password-file = "/etc/mover/xcp.secret"', ()),
        ("", 'password-file = "/etc/mover/xcp.secret"', ("--user",)),
    ],
    ids=["plain", "variable", "hooks", "user"],
)
def test_systemd_takes_every_line(tmp_path: Path, more: str, password: str, options: tuple[str, ...]):
    program = needs_systemd()
    text = 'name = "night"\n' + job_text(tmp_path, more, password)
    files = made(tmp_path, text, *options)
    names = ["mover-night-nightly", "mover-night-weekly-full"]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("service", "timer")]
    manager = ["--user"] if options else ["--system"]
    done = subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", *manager, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert not re.findall(r"mover-night.*", done.stderr), done.stderr
    assert done.returncode == 0, done.stderr


def test_systemd_does_not_take_everything(tmp_path: Path):
    """Else the test above could not fail."""
    program = needs_systemd()
    (service, *_) = made(tmp_path, 'name = "night"\n' + job_text(tmp_path))
    service.write_text(service.read_text().replace("Type=oneshot", "Type=oneshot\nRestart=always\nFoo=bar"))
    done = subprocess.run(
        [program, "verify", "--man=no", str(service)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "mover-night-nightly" in done.stderr


def test_what_a_service_is_exposed_to(tmp_path: Path):
    program = needs_systemd()
    (service, *_) = made(tmp_path, 'name = "night"\n' + job_text(tmp_path))
    done = subprocess.run(
        [program, "security", "--offline=yes", "--json=short", str(service)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert sum(float(row["exposure"] or 0) for row in rows) > 0
    kept = {row["name"] for row in rows if row["set"] is True}
    assert {"ProtectKernelModules=", "NoNewPrivileges=", "PrivateDevices=", "LockPersonality="} <= kept


def test_a_calendar_that_systemd_does_not_take(tmp_path: Path):
    needs_systemd()
    check_calendars(parse_job(job_text(tmp_path), "job.toml", "j"))
    wrong = job_text(tmp_path).replace("Sun *-*-*", "Caturday *-*-*")
    with pytest.raises(JobError, match="weekly-full: systemd does not take the calendar 'Caturday"):
        check_calendars(parse_job(wrong, "job.toml", "j"))


def test_a_job_without_calendars_is_told_so(tmp_path: Path):
    text = re.sub(r"calendar = .*\n", "", job_text(tmp_path))
    job = parse_job(text, "job.toml", "j")
    with pytest.raises(JobError, match="has no schedule with a calendar"):
        units(job, Path("/j.toml"), ["/usr/bin/mover"], [])


def test_the_only_places_that_a_run_writes_to_are_writable(tmp_path: Path):
    (tmp_path / "log").mkdir()
    text = 'name = "night"\n' + job_text(tmp_path, f'[report]\nlog = "{tmp_path}/log/{{job}}.jsonl"\n')
    text = text.replace("file://{folder}/store", str(tmp_path))
    (service, *_) = made(tmp_path, text)
    writable = re.findall(r"^ReadWritePaths=(.*)$", service.read_text(), re.MULTILINE)
    assert {str(tmp_path), str(tmp_path / "log"), "/tmp"} <= {*writable, "/tmp"}
    assert all(Path(path).is_dir() for path in writable)


@pytest.mark.parametrize(
    ("store", "more"),
    [
        ('url = "file://{folder}/store"', set()),
        ('url = "file://{folder}/store"\npassphrase-file = "/etc/mover/passphrase"', {"cache/mover"}),
        ('url = "file://{folder}/store"\npassphrase-env = "PASSPHRASE"', {"cache/mover"}),
        ('url = "s3://bucket/prefix"', {"cache/mover", "/var/tmp"}),
    ],
    ids=["folder", "encrypted", "encrypted by a variable", "s3"],
)
def test_the_cache_and_what_is_gathered_have_a_place(tmp_path: Path, store: str, more: set[str]):
    """The index of an encrypted store is mapped from copies, and large objects for a bucket are gathered in a file."""
    for folder in ("state", "cache/mover", "store", "tmp"):
        (tmp_path / folder).mkdir(parents=True)
    text = job_text(tmp_path).replace(f'url = "file://{tmp_path}/store"', store.format(folder=tmp_path))
    (service, *_) = made(
        tmp_path,
        'name = "night"\n' + text,
        MOVER_STATE=str(tmp_path / "state"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        TMPDIR=str(tmp_path / "tmp"),
    )
    writable = set(re.findall(r"^ReadWritePaths=(.*)$", service.read_text(), re.MULTILINE))
    own = {"store"} if "s3:" not in store else set()
    assert writable == {str(tmp_path / folder) for folder in {"state", "tmp"} | own | more}


SECRET = '{kind}-command = ["/usr/bin/pass", "mover"]'


@pytest.mark.parametrize("options", [(), ("--user",)], ids=["system", "user"])
@pytest.mark.parametrize("command", ["pool", "passphrase", "secret-access-key", "hook", "none"])
def test_a_job_with_commands_of_its_own_is_not_confined(tmp_path: Path, command: str, options: tuple[str, ...]):
    text = job_text(
        tmp_path,
        '[hooks]\npost-snapshot = ["/bin/true"]\n' if command == "hook" else "",
        SECRET.format(kind="password") if command == "pool" else 'password-file = "/etc/mover/xcp.secret"',
    )
    if command in ("passphrase", "secret-access-key"):
        url = 'url = "s3://bucket/prefix"' + ('\naccess-key-id = "me"' if command == "secret-access-key" else "")
        text = text.replace(f'url = "file://{tmp_path}/store"', f"{url}\n{SECRET.format(kind=command)}")
    (service, *_) = made(tmp_path, 'name = "night"\n' + text, *options)
    assert ("NoNewPrivileges" in service.read_text()) == (command == "none")


@pytest.mark.parametrize("word", ["plain", "/a b/c", 'quo"te', "per%cent", "$HOME", "back\\slash", ""])
def test_words_stay_words(word: str, tmp_path: Path):
    """A service that prints its argument, read back by systemd's own parser of command lines."""
    program = needs_systemd()
    unit = tmp_path / "words.service"
    unit.write_text(f"[Service]\nType=oneshot\nExecStart=/bin/echo {quoted(word)} end\n")
    done = subprocess.run(
        [program, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
