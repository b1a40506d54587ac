"""Every command of docs/restore.md that can run here does, section by section, as a shell would run it."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mover.store import Store
from tests import fork_server
from tests.disks_fixtures import needs
from tests.serve_fixtures import MOVER, MiB, ext4_image
from tests.store_fixtures import files_of, noise

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/restore.md").read_text()
MOTD = b"a guest's greeting\n"
FILES = {"etc/motd": MOTD, "srv/www/index.html": b"<p>hello</p>\n", "srv/blob": noise("a file", 700_000)}
PARTITION = MiB


class Command(NamedTuple):
    """A line of the page, and the exit code that it says."""

    text: str
    code: int


class Section(NamedTuple):
    """A heading of the second level, and the commands below it that can run here."""

    title: str
    commands: list[Command]


def sections() -> list[Section]:
    found: list[Section] = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        commands = []
        for skipped, block in re.findall(r"(<!-- not run: .+? -->\n)?```console\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            assert all(line.startswith("$ ") for line in lines), block
            if not skipped:
                commands += [command(line) for line in lines]
        if commands:
            found.append(Section(title, commands))
    return found


def command(line: str) -> Command:
    text, _, comment = line.removeprefix("$ ").partition(" # ")
    return Command(text.strip(), int(comment.split(":")[0]) if comment else 0)


@dataclass
class World:
    """Two pools, a store that two VMs were backed up to, and what was on their disks."""

    folder: Path
    environment: dict[str, str]
    disks: list[bytes]

    @property
    def store(self) -> Path:
        return self.folder / "backup"


@contextmanager
def pool(folder: Path) -> Iterator[dict[str, Any]]:
    """A simulated pool."""
    with fork_server.Popen(
        [*MOVER, "simulate", "--dir", str(folder), "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


def tell(pool: dict[str, Any], operation: str, **arguments: Any) -> dict[str, Any]:
    body = json.dumps({"op": operation, **arguments}).encode()
    with urllib.request.urlopen(urllib.request.Request(pool["steering"], body), timeout=60) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def make_vm(pool: dict[str, Any], name: str, disks: list[bytes]) -> None:
    made = tell(pool, "make_vm", name=name, sizes=[len(data) for data in disks])
    for vdi, data in zip(made["vdis"], disks, strict=True):
        for at in range(0, len(data), MiB):
            if any(piece := data[at : at + MiB]):
                tell(pool, "write", vdi=vdi, offset=at, data=base64.b64encode(piece).decode())


def job_file(path: Path, pool: dict[str, Any], store: Path) -> None:
    secret = path.with_suffix(".secret")
    secret.touch(0o600)
    secret.write_text(pool["password"])
    path.write_text(
        f'[pool]\nurl = "{pool["url"]}"\nusername = "{pool["username"]}"\npassword-file = "{secret}"\n'
        f'fingerprint = {json.dumps(pool["fingerprints"])}\n[store]\nurl = "file://{store}"\n[[vms]]\nall = true\n'
    )


def partitioned(system: bytes) -> bytes:
    """A disk with one partition, at its first MiB, for a file system."""
    entry = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\xff\xff\xff", PARTITION // 512, len(system) // 512)
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa" + bytes(PARTITION - 512) + system


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("w")
    programs = folder / "bin"
    programs.mkdir()
    scripts = {"mover": f"exec {shlex.join(MOVER)}"}
    if shutil.which("fusermount3") is None and os.geteuid() == 0:
        scripts["fusermount3"] = "exec umount"  # `fusermount3 -u` is what others than root use in its place
    for name, script in scripts.items():
        (programs / name).write_text(f'#!/bin/sh\n[ "$1" != -u ] || shift\n{script} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(ROOT),
        "MOVER_STATE": str(folder / "state"),
    }
    disks = [partitioned(ext4_image(folder, FILES)), noise("data", 3 * MiB) + bytes(5 * MiB)]
    with ExitStack() as stack:
        old = stack.enter_context(pool(folder / "pool"))
        make_vm(old, "web-1", disks)
        make_vm(old, "db-1", [noise("db", 2 * MiB)])
        job_file(folder / "nightly.toml", old, folder / "backup")
        subprocess.run(["mover", "run", folder / "nightly.toml"], check=True, timeout=100, env=environment)
        new = stack.enter_context(pool(folder / "new-pool"))
        job_file(folder / "new-pool.toml", new, folder / "backup")
        yield World(folder, environment, disks)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def script(commands: list[Command], names: dict[str, str]) -> str:
    """The commands for bash: it waits until what goes on in the background is ready, and stops at a wrong exit code."""
    lines = ["set -u", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for number, (text, code) in enumerate(commands):
        for name, stands_for in names.items():
            text = text.replace(name, stands_for)
        ready = f"ready.{number}"
        lines.append(f"echo {shlex.quote('$ ' + text)}")
        if text.endswith(" &") and text.startswith("nbdfuse"):
            text = text.replace("nbdfuse", f"mkfifo {ready}; nbdfuse --pidfile {ready}", 1)
            lines.append(f"{text} cat {ready}")
        elif text.endswith(" &"):
            lines.append(f"mkfifo {ready}; {text[:-2]} > {ready} & serving=$!")
            lines.append(f"exec {{fd}}< {ready}; read -r line <&$fd")
        elif text == "kill %1":
            lines.append("kill $serving; wait $serving; [ $? = 143 ]")
        else:
            lines.append(text)
        lines.append(f'code=$?; [ $code = {code} ] || {{ echo "exit code $code instead of {code}"; exit 99; }}')
    return "\n".join(lines)


def missing(section: Section) -> list[str]:
    """The programs of a section that are not here."""
    programs = {text.split()[0] for text, _ in section.commands}
    away = [name for name in programs if re.fullmatch(r"[a-z0-9-]+", name) and not shutil.which(name)]
    if "nbdfuse" in programs and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        away.append("/dev/fuse")
    return sorted(set(away) - {"mover", "fusermount3", "kill", "cd"})


def check_files(world: World, here: Path) -> None:
    for number, data in enumerate(world.disks):
        assert (here / f"restored/web-1-{number}.raw").read_bytes() == data
    assert json.loads((here / "restored/web-1.json").read_bytes())["vm"]["name_label"] == "web-1"


def check_one_disk(world: World, here: Path) -> None:
    assert (here / "restored/web-1-1.raw").read_bytes() == world.disks[1]


def check_served(world: World, here: Path) -> None:
    assert (here / "web-1-0.raw").read_bytes() == world.disks[0]


def check_moved(world: World, here: Path) -> None:
    check_files(world, here)
    store = Store.open(world.store)
    assert {disk.mode for disk in store.point("web-1").record.disks} == {"incremental"}
    store.close()


def check_single_files(world: World, here: Path) -> None:
    assert (here / "motd").read_bytes() == MOTD
    assert {str(path.relative_to(here)) for path in (here / "srv").rglob("*") if path.is_file()} == {
        name for name in FILES if name.startswith("srv/")
    }
    assert all((here / name).read_bytes() == data for name, data in FILES.items() if name.startswith("srv/"))


def check_salvaged(world: World, here: Path) -> None:
    """All but what lies around the damaged chunk."""
    saved, data = (here / "salvaged.raw").read_bytes(), world.disks[0]
    assert len(saved) == len(data)
    wrong = [at for at in range(0, len(data), 65536) if saved[at : at + 65536] != data[at : at + 65536]]
    assert 0 < len(wrong) <= 32
    assert not any(any(saved[at : at + 65536]) for at in wrong)
    assert (here / "restored/web-1-1.raw").read_bytes() == world.disks[1]


CHECKS: dict[str, Callable[[World, Path], None]] = {
    "Disks into files": check_files,
    "One disk": check_one_disk,
    "Disks without restoring them": check_served,
    "Single files": check_single_files,
    "The machine with mover is gone": check_moved,
    "The store is damaged": check_salvaged,
}


def damage(store: Path) -> None:
    """Spoil a chunk that only the first disk of web-1 has: the file of the guest that does not compress."""
    opened = Store.open(store)
    disk = opened.point("web-1").record.disks[0]
    content = bytearray(disk.size)
    opened.disk(disk.root, disk.size).read_into(0, memoryview(content))
    at = content.index(FILES["srv/blob"][200_000:200_064])
    opened.close()
    needle = bytes(content[at : at + 64])
    for file in files_of(store):
        data = file.read_bytes()
        if (found := data.find(needle)) >= 0:
            file.write_bytes(data[:found] + bytes(64) + data[found + 64 :])
            return
    raise AssertionError("this chunk is nowhere as it is")


@needs("mkfs.ext4", "bash")
@pytest.mark.parametrize("section", sections(), ids=lambda section: section.title)
def test_the_commands_of_a_section(world: World, tmp_path_factory: pytest.TempPathFactory, section: Section) -> None:
    if away := missing(section):
        pytest.skip(f"not installed: {', '.join(away)}")
    here = tmp_path_factory.mktemp("s")
    store = world.store
    if section.title == "The store is damaged":
        store = here / "backup"
        shutil.copytree(world.store, store)
        damage(store)
    names = {
        "/srv/backup": str(store),
        "/srv/restored": str(here / "restored"),
        "/srv/copy": str(here / "copy"),
        "nightly.toml": str(world.folder / "nightly.toml"),
        "new-pool.toml": str(world.folder / "new-pool.toml"),
        "10809": str(free_port()),
        "DNS:backup.example.org": "IP:127.0.0.1",
        "backup.example.org": "127.0.0.1",
    }
    done = subprocess.run(
        ["bash", "-c", script(section.commands, names)],
        cwd=here, env={**world.environment, "MOVER_STATE": str(here / "state")}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    CHECKS.get(section.title, lambda *_: None)(world, here)


def test_every_section_with_a_check_is_on_the_page() -> None:
    assert set(CHECKS) <= {section.title for section in sections()}


def test_links_within_the_page_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
