"""The command line as a process: what it prints where, its exit codes, its signals, and what it imports."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from xmlrpc.server import SimpleXMLRPCServer

import pytest

from mover.backup.metadata import VmMetadata, encode
from mover.store import Store
from tests import fork_server
from tests.store_fixtures import noise, point_of, write_disk

MOVER = [sys.executable, "-m", "mover"]
VERBS = tuple(
    "run check explain list show restore serve verify prune repair copy report units key simulate demo".split()
)
METADATA = VmMetadata(
    vm={"name_label": "web"},
    vbds={},
    vdis={},
    vifs={},
    networks={},
    pifs={},
    srs={},
    vtpms={},
    vtpm_contents={},
    software_version={},
)
SECRET = "correct-horse-battery"


def mover(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run(
        [*MOVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def disk() -> bytes:
    return noise("cli", 3 * 65536 + 512) + bytes(65536)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, disk: bytes) -> Path:
    """A store with one point of one VM, whose name is as nasty as names on a pool can be."""
    path = tmp_path_factory.mktemp("cli") / "store"
    with Store.create(str(path)).writer() as writer:
        metadata = writer.put_blob(encode(METADATA))
        root = write_disk(writer, disk)
        writer.commit(point_of(root, len(disk), 1e9, "web\x1b[31m", metadata))
    return path


def job_file(
    folder: Path, store: Path, pool: str = "https://127.0.0.1:1", password: str = 'password-env = "P"'
) -> Path:
    path = folder / "job.toml"
    path.write_text(
        f'[pool]\nurl = "{pool}"\nusername = "root"\n{password}\n[store]\nurl = "{store}"\n[[vms]]\nall = true\n'
    )
    return path


def test_help_names_every_verb_and_imports_nothing_heavy():
    script = (
        "import sys, mover.cli\n"
        "try:\n    mover.cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert re.findall(r"^    (\w+) ", done.stdout, re.MULTILINE) == list(VERBS)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    heavy = {"numpy", "rich", "aiohttp", "nbd", "XenAPI", "uvloop", "msgspec", "asyncio", "zstandard", "blake3", "ssl"}
    assert not loaded & heavy


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str):
    done = mover(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: mover {verb} ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["run"], "required: JOB.toml"),
        (["run", "j.toml", "--progress", "loud"], "invalid choice: 'loud'"),
        (["restore", "/s", "latest"], "--job --to is required"),
        (["restore", "/s", "latest", "--to", "d", "--job", "j.toml"], "not allowed with"),
        (["restore", "/s", "latest", "--to", "d", "--sr", "x"], "error: --sr is for restores to a pool"),
        (["restore", "/s", "latest", "--to", "d", "--no-new-macs"], "error: --new-macs is for restores to a pool"),
        (["restore", "/s", "latest", "--job", "j.toml", "--network", "a"], "error: --network takes OLD=NEW"),
        (["run", "/nonexistent.toml"], "error: cannot read the job file /nonexistent.toml"),
        (["list", "ftp://bucket"], "error: a store is a directory, file:///path or s3://bucket/prefix"),
    ],
)
def test_usage_errors_are_2_and_on_stderr(arguments: list[str], words: str):
    done = mover(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_job_names_each_place_once_with_a_hint(tmp_path: Path, store: Path):
    path = job_file(tmp_path, store)
    path.write_text(path.read_text().replace("username", "user-name"))
    done = mover("run", path)
    assert done.returncode == 2
    assert f"error: {path}:3:1: pool.user-name: found an unknown key; did you mean username?" in done.stderr
    assert done.stderr.count("pool.username: found nothing") == 1
    assert done.stderr.splitlines()[-1].startswith("hint: ")


def test_no_store_and_no_such_point(tmp_path: Path, store: Path):
    assert mover("list", tmp_path / "none").returncode == 10
    missing = mover("show", store, "nobody")
    assert (missing.returncode, missing.stdout) == (21, "")
    assert missing.stderr.startswith("error: ")
    assert "hint: `mover list` shows what there is" in missing.stderr


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_the_list_of_a_vm_that_there_is_not(store: Path, options: tuple[str, ...]):
    missing = mover("list", store, "nobody", *options)
    assert (missing.returncode, missing.stdout) == (21, "")
    assert missing.stderr.splitlines() == [
        f"error: {store} has no point of a VM nobody",
        "hint: `mover list` without a VM shows what there is",
    ]


def test_the_list_of_a_vm_whose_points_may_be_the_damaged_ones(tmp_path: Path, store: Path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", store, copy], check=True)
    (point,) = (path for path in (copy / "points").rglob("*") if path.is_file())
    point.chmod(0o600)
    point.write_bytes(point.read_bytes()[:-1])
    done = mover("list", copy, "web\x1b[31m")
    assert (done.returncode, done.stdout) == (13, "")
    assert "damaged: " in done.stderr


@pytest.mark.parametrize("how", ["store", "url", "job", "job without suffix"])
def test_list_by_store_or_job(tmp_path: Path, store: Path, how: str):
    job = job_file(tmp_path, store)
    if how == "job without suffix":
        job = job.rename(tmp_path / "nightly")
    done = mover("list", {"store": store, "url": f"file://{store}"}.get(how, job))
    assert done.returncode == 0, done.stderr
    assert "full" in done.stdout
    assert "web\\x1b[31m" in done.stdout
    assert done.stderr == ""


def test_json_is_the_only_thing_on_stdout(store: Path, disk: bytes):
    (listed,) = json.loads(mover("list", store, "--json").stdout)
    shown = json.loads(mover("show", store, listed["id"][:8], "--json").stdout)
    assert shown == listed
    assert (shown["vm_name"], shown["disks"][0]["size"]) == ("web\x1b[31m", len(disk))
    verified = mover("verify", store, "--deep", "--json", "--progress", "json")
    assert json.loads(verified.stdout) == {"damages": []}
    events = [json.loads(line) for line in verified.stderr.splitlines()]
    assert events[-1]["type"] == "verify.progress"
    assert events[-1]["done"] == events[-1]["total"]


def test_restore_to_files(tmp_path: Path, store: Path, disk: bytes):
    done = mover("restore", store, "latest", "--to", tmp_path / "out", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == disk
    assert "web\\x1b[31m/0 (disk): restored" in done.stderr
    again = mover("restore", store, "latest", "--to", tmp_path / "out", "--progress", "plain")
    assert again.stdout == done.stdout
    assert "web\\x1b[31m/0 (disk): restored 0 B in " in again.stderr
    assert again.stderr.rstrip().endswith(" KiB were there already"), again.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path, store: Path):
    (tmp_path / "file").write_text("")
    done = mover("restore", store, "latest", "--to", tmp_path / "file" / "out")
    assert done.returncode == 25
    assert done.stderr.splitlines()[-1] == f"error: cannot make {tmp_path}/file/out: Not a directory"


def test_damage_is_30_and_names_the_point(tmp_path: Path, store: Path, disk: bytes):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", store, copy], check=True)
    packs = sorted((copy / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    with packs[-1].open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)
        file.seek(70_000)
        file.write(bytes([byte[0] ^ 1]))
    done = mover("verify", copy, "--progress", "none")
    assert done.returncode == 30
    assert "damaged" in done.stdout
    (point,) = json.loads(mover("list", store, "--json").stdout)
    damages = json.loads(mover("verify", copy, "--json", "--progress", "none").stdout)["damages"]
    assert any(point["id"] in damage["points"] for damage in damages)


@pytest.mark.parametrize("verb", [("run",), ("run", "--json"), ("run", "--dry-run"), ("restore",)])
def test_a_refused_login_is_20_and_the_password_is_nowhere(tmp_path: Path, store: Path, verb: tuple[str, ...]):
    seen: list[object] = []

    def log_in(user: str, password: str, *rest: object) -> dict[str, object]:
        seen.append(password)
        return {
            "Status": "Failure",
            "ErrorDescription": ["SESSION_AUTHENTICATION_FAILED", user, "Authentication failure"],
        }

    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as pool:
        pool.register_function(log_in, "session.login_with_password")
        serving = threading.Thread(target=pool.serve_forever)
        serving.start()
        try:
            job = job_file(tmp_path, store, f"http://127.0.0.1:{pool.server_address[1]}")
            arguments = (store, "latest", "--job", job) if verb == ("restore",) else (job,)
            done = mover(*verb, *arguments, P=SECRET)
        finally:
            pool.shutdown()
            serving.join()
    assert seen == [SECRET]
    assert done.returncode == 20, done.stderr
    assert "SESSION_AUTHENTICATION_FAILED" in done.stderr
    assert "hint: check username and the password's source" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in verb:
        summary = json.loads(done.stdout)
        assert (summary["job"], summary["outcome"], summary["exit_code"], summary["vms"]) == ("job", "failed", 20, {})
        assert "SESSION_AUTHENTICATION_FAILED" in summary["error"]


def test_a_secret_that_cannot_be_read_is_12(tmp_path: Path, store: Path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    done = mover("run", job_file(tmp_path, store, password=f'password-file = "{secret}"'))
    assert done.returncode == 12
    assert f"hint: chmod 600 {secret}" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_enough_is_no_error(store: Path, buffered: bool):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*MOVER, "show", str(store), "latest"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=environment if buffered else environment | {"PYTHONUNBUFFERED": "1"},
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_results_that_cannot_be_written_are_an_error(store: Path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MOVER, "list", str(store)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (4, "error: cannot write to stdout: No space left on device\n")


@pytest.fixture
def silent_pool() -> Iterator[socket.socket]:
    """A server that accepts and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_a_run_cleanly(
    tmp_path: Path, store: Path, silent_pool: socket.socket, number: signal.Signals, code: int
):
    job = job_file(tmp_path, store, f"https://127.0.0.1:{silent_pool.getsockname()[1]}")
    with subprocess.Popen(
        [*MOVER, "run", str(job)], stderr=subprocess.PIPE, text=True, env={**os.environ, "P": SECRET}
    ) as process:
        connection, _ = silent_pool.accept()
        with connection:
            process.send_signal(number)
            assert process.stderr is not None
            first = process.stderr.readline()
        errors = process.stderr.read()
        assert process.wait(60) == code
    assert first == "stopping: cleaning up; once more to stop at once\n"
    assert errors == "interrupted; everything is left clean\n"


def test_a_second_signal_ends_at_once_even_if_the_loop_is_blocked(tmp_path: Path, store: Path):
    """The command for the password never ends: nothing but the second signal can."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    stuck = f'password-command = ["sh", "-c", "echo started > {fifo}; exec cat {fifo}"]'
    job = job_file(tmp_path, store, password=stuck)
    with subprocess.Popen([*MOVER, "run", str(job)], stderr=subprocess.PIPE, text=True) as process:
        with fifo.open() as started:
            assert started.read() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("stopping: ")
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
            fifo.write_text("")  # lets the command end
        assert process.stderr.read() == ""
