"""Encrypted stores from the command line, from the first run to restores, with passphrases from every source."""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mover.store import Store
from tests import fork_server
from tests.cli_site import MOVER, MiB, Site, cli_site
from tests.crypt_fixtures import CHEAP, PASSPHRASE, create
from tests.store_fixtures import back_up, files_of, noise

RIGHT = PASSPHRASE.reveal()
WRONG = "a passphrase that is wrong"
NEW = "Frühling, Sommer; $HOME"


@pytest.fixture(autouse=True)
def without_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOVER_PASSPHRASE", raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with cli_site(tmp_path) as here:
        yield here


def mover(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command, and that it says nothing of any passphrase."""
    done = fork_server.run(
        [*MOVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert not [word for word in (RIGHT, WRONG, NEW) if word in done.stdout + done.stderr]
    assert "Traceback" not in done.stderr
    return done


def secret_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text + "\n")
    return path


def with_store_lines(job: Path, target: Path, *lines: str) -> Path:
    """The job with further lines in [store]."""
    target.write_text(job.read_text().replace("[[vms]]", "\n".join([*lines, "[[vms]]"])))
    return target


def make_cheap(path: Path) -> None:
    """The same passphrase from now on takes less time: a store that `mover` has made has a key that is dear."""
    store = Store.open(path, passphrase=PASSPHRASE)
    ((dear,), _) = store.keys.slots()
    assert dear.cost.memory > CHEAP.memory
    store.add_passphrase(PASSPHRASE, cost=CHEAP)
    store.keys.remove(dear.id)


def test_run_incremental_verify_restore_with_a_passphrase_from_each_source(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (vdi,) = site.tell("make_vm", name="web", sizes=[16 * MiB])["vdis"]
    site.tell("fill", vdi=vdi, offset=MiB, length=2 * MiB, kind="text")
    monkeypatch.setenv("STORE_SECRET", RIGHT)
    file = secret_file(site.folder / "secret", RIGHT)
    sources = (
        f'passphrase-file = "{file}"',
        'passphrase-env = "STORE_SECRET"',
        f'passphrase-command = ["cat", "{file}"]',
    )
    plain, jobs = site.job, [site.folder / f"with-{number}.toml" for number in range(3)]
    for job, source in zip(jobs, sources, strict=True):
        with_store_lines(plain, job, source)
        job.write_text('name = "job"\n' + job.read_text())
        summary = json.loads(site.mover("run", job, "--json"))
        (vm,) = summary["vms"].values()
        assert vm["outcome"] == "done"
        assert vm["full_disks"] == (1 if job == jobs[0] else 0)
        if job == jobs[0]:
            make_cheap(site.folder / "store")
        site.tell("dump", vdi=vdi, path=str(site.folder / "reference"))
        assert site.mover("verify", job, "--deep") == "no damage found\n"
        (restored,) = site.mover("restore", job, "latest", "--to", site.folder / job.stem).splitlines()
        assert Path(restored).read_bytes() == (site.folder / "reference").read_bytes()
        site.tell("scatter", vdi=vdi, count=3, length=4096)
    assert len(json.loads(site.mover("list", jobs[0], "--json"))) == 3
    again = json.loads(site.mover("restore", jobs[0], "latest", "--job", jobs[0], "--name", "again", "--json"))
    assert again["name"] == "again"
    assert "passphrase" in json.dumps(json.loads(site.mover("check", jobs[0], "--json")))
    site.mover("prune", jobs[1])

    stored = files_of(site.folder / "store")
    # The name as records have it, in quotes: three letters are found in random bytes by chance.
    texts = (site.folder / "reference").read_bytes()[MiB : MiB + 32], b'"web"', vdi.encode(), RIGHT.encode()
    assert not [(file, text) for file in stored for text in texts if text in file.read_bytes()]
    written = [path.read_text() for path in (site.folder / "log").iterdir()]
    assert not [text for text in [*site.printed, *written] if RIGHT in text]

    # The store as it is, and a job that does not say that it is encrypted, or has another passphrase.
    site.mover("run", plain, code=16)
    secret_file(site.folder / "wrong", WRONG)
    wrong = with_store_lines(plain, site.folder / "wrong.toml", f'passphrase-file = "{site.folder / "wrong"}"')
    for words in (("run", wrong), ("list", wrong), ("verify", wrong), ("prune", wrong)):
        site.mover(*words, code=16)
    monkeypatch.setenv("MOVER_PASSPHRASE", RIGHT)
    assert len(json.loads(site.mover("list", plain, "--json"))) == 3


def test_commands_of_a_job_do_not_see_the_passphrase(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    create(site.folder / "store")
    monkeypatch.setenv("MOVER_PASSPHRASE", RIGHT)
    site.tell("make_vm", name="web", sizes=[MiB])
    seen = site.folder / "seen"
    site.job.write_text(site.job.read_text() + f'[hooks]\npre-snapshot = ["sh", "-c", "env > {seen}"]\n')
    site.mover("run", site.job)
    assert "MOVER_VM_UUID" in seen.read_text()
    assert RIGHT not in seen.read_text()


def test_a_job_that_wants_encryption_refuses_a_store_that_has_none(site: Site) -> None:
    site.tell("make_vm", name="web", sizes=[4 * MiB])
    site.mover("run", site.job)
    file = secret_file(site.folder / "secret", RIGHT)
    job = with_store_lines(site.job, site.folder / "encrypted.toml", f'passphrase-file = "{file}"')
    before = {path: path.read_bytes() for path in files_of(site.folder / "store")}
    for words in (("run", job), ("list", job), ("list", site.folder / "store", "--passphrase-file", file)):
        site.mover(*words, code=17)
    assert before == {path: path.read_bytes() for path in files_of(site.folder / "store")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encrypted store with a point."""
    path = tmp_path_factory.mktemp("kept") / "store"
    back_up(create(path), noise(1))
    return path


VERBS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "list": lambda store, _: ("list", store),
    "show": lambda store, _: ("show", store, "latest"),
    "restore": lambda store, folder: ("restore", store, "latest", "--to", folder / "out"),
    "serve": lambda store, folder: ("serve", store, "latest", "--socket", folder / "nbd"),
    "verify": lambda store, _: ("verify", store, "--deep"),
    "prune": lambda store, _: ("prune", store),
    "key list": lambda store, _: ("key", "list", store),
    "key add": lambda store, _: ("key", "add", store, "--new-passphrase-env", "NEW"),
    "key change": lambda store, _: ("key", "change", store, "--new-passphrase-env", "NEW"),
    "key remove": lambda store, _: ("key", "remove", store, "0" * 16),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_does_anything_with_a_wrong_passphrase_or_none(
    kept: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEW", NEW)
    monkeypatch.setenv("WRONG", WRONG)
    before = {path: path.read_bytes() for path in files_of(kept)}
    command = VERBS[verb](kept, tmp_path)
    for source in ((), ("--passphrase-env", "WRONG")):
        done = mover(*command, *source)
        assert (done.returncode, done.stdout) == (16, ""), done.stderr
        assert str(kept) in done.stderr and "hint: " in done.stderr
    assert before == {path: path.read_bytes() for path in files_of(kept)}
    assert not list(tmp_path.glob("out/*"))


def test_passphrases_on_the_command_line(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = secret_file(tmp_path / "secret", RIGHT)
    monkeypatch.setenv("RIGHT", RIGHT)
    for source in (
        ("--passphrase-file", file),
        ("--passphrase-env", "RIGHT"),
        ("--passphrase-command", f"cat {shlex.quote(str(file))}"),
    ):
        assert mover("verify", kept, *source).returncode == 0
    for verb in ("show", "prune", "restore"):
        assert mover(*VERBS[verb](kept, tmp_path), "--passphrase-env", "RIGHT").returncode == 0
    monkeypatch.setenv("MOVER_PASSPHRASE", RIGHT)
    assert mover("list", kept).returncode == 0
    assert mover("list", kept, "--passphrase-env", "NONE").returncode == 12
    assert mover("list", kept, "--passphrase-command", "false").returncode == 12
    assert mover("list", kept, "--passphrase-command", "a 'quote that is open").returncode == 2
    assert mover("list", kept, "--passphrase-env", "RIGHT", "--passphrase-file", file).returncode == 2
    file.chmod(0o644)
    assert mover("list", kept, "--passphrase-file", file).returncode == 12


def test_keys_are_added_changed_listed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    back_up(create(store), noise(1))
    monkeypatch.setenv("NEW", NEW)
    monkeypatch.setenv("OLD", RIGHT)

    def others() -> dict[str, bytes]:
        found = {str(path.relative_to(store)): path.read_bytes() for path in files_of(store)}
        return {name: data for name, data in found.items() if not name.startswith(("keys/", "scrub/"))}

    before = others()
    added = mover(
        "key", "add", store, "--new-passphrase-env", "NEW", "--label", "the admins'", "--passphrase-env", "OLD"
    )
    assert added.returncode == 0, added.stderr
    keys = json.loads(mover("key", "list", store, "--json", "--passphrase-env", "NEW").stdout)
    assert sorted(key["label"] for key in keys) == ["", "the admins'"]
    assert "the admins'" in mover("key", "list", store, "--passphrase-env", "OLD").stdout
    (old,) = [key["id"] for key in keys if not key["label"]]
    assert mover("key", "remove", store, old, "--passphrase-env", "NEW").returncode == 0
    assert mover("list", store, "--passphrase-env", "OLD").returncode == 16

    third = secret_file(tmp_path / "third", "drei")
    assert mover("key", "change", store, "--new-passphrase-file", third, "--passphrase-env", "NEW").returncode == 0
    assert mover("list", store, "--passphrase-env", "NEW").returncode == 16
    (key,) = json.loads(mover("key", "list", store, "--json", "--passphrase-file", third).stdout)
    assert key["label"] == "the admins'"
    assert mover("key", "remove", store, key["id"], "--passphrase-file", third).returncode == 2
    assert mover("key", "remove", store, "0" * 16, "--passphrase-file", third).returncode == 21
    assert mover("verify", store, "--deep", "--passphrase-file", third).returncode == 0
    assert others() == before, "no object but keys, and the stamps of a check, was touched"
    assert mover("key", "add", store, "--passphrase-file", third).returncode == 2


def test_keys_of_a_store_that_is_not_encrypted(tmp_path: Path) -> None:
    Store.create(tmp_path)
    assert mover("key", "list", tmp_path).returncode == 17
