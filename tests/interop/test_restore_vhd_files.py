"""VHD files of `mover restore --to` before programs that are not ours: qemu-img, vhdiinfo, and libvhdi's module."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import fork_server
from tests.disks_fixtures import needs
from tests.serve_fixtures import MOVER, MiB, patchy, store_with
from tests.store_fixtures import noise

PYTHON = "/usr/bin/python3"  # that of the distribution, which has libvhdi's module
_FOUND = (
    os.path.exists(PYTHON)
    and not subprocess.run([PYTHON, "-c", "import pyvhdi"], capture_output=True, check=False).returncode
)
READ = """
import pyvhdi, sys
file = pyvhdi.file()
file.open(sys.argv[1])
with open(sys.argv[2], "wb") as out:
    while file.get_offset() < file.get_media_size():
        out.write(file.read_buffer(min(1 << 20, file.get_media_size() - file.get_offset())))
"""
# Data that ends a block, begins one, spans three; an end in the middle of a block; and nothing at all.
DISKS = {
    "patchy": patchy(),
    "spanning": bytes(4 * MiB - 512) + noise("spanning", 4 * MiB) + bytes(20 * MiB),
    "odd end": bytes(6 * MiB) + noise("end", 1536),
    "empty": bytes(3 * MiB),
    "sector": noise("sector", 512),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes]]:
    """What the command has made of each disk, and what is to be in it."""
    folder = tmp_path_factory.mktemp("vhd")
    store_with(folder / "store", list(DISKS.items())).close()
    command = [*MOVER, "restore", str(folder / "store"), "latest", "--to", str(folder / "out"), "--format", "vhd"]
    done = fork_server.run(command, capture_output=True, text=True, timeout=60, check=True)
    return list(zip(map(Path, done.stdout.splitlines()), DISKS.values(), strict=True))


@needs("qemu-img")
def test_qemu_img_finds_them_identical(files: list[tuple[Path, bytes]], tmp_path: Path) -> None:
    for file, data in files:
        (tmp_path / "raw").write_bytes(data)
        command = ["qemu-img", "compare", "-f", "raw", "-F", "vpc", tmp_path / "raw", file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs("vhdiinfo")
def test_vhdiinfo_reads_what_they_say_about_themselves(files: list[tuple[Path, bytes]]) -> None:
    identifiers = set()
    for file, data in files:
        said = subprocess.run(["vhdiinfo", file], capture_output=True, text=True, timeout=60, check=True).stdout
        assert re.search(r"Disk type\s*: Dynamic", said)
        assert re.search(rf"Media size\s*: .*\b{len(data)}\b", said), said
        identifiers.add(re.findall(r"Identifier\s*: (\S+)", said)[0])
    assert len(identifiers) == len(files)


@pytest.mark.skipif(not _FOUND, reason="not installed: python3-libvhdi")
def test_libvhdi_reads_every_byte(files: list[tuple[Path, bytes]], tmp_path: Path) -> None:
    for file, data in files:
        subprocess.run([PYTHON, "-c", READ, file, tmp_path / "raw"], check=True, timeout=60)
        assert (tmp_path / "raw").read_bytes() == data, file


def test_blocks_without_data_are_not_there(files: list[tuple[Path, bytes]]) -> None:
    for file, data in files:
        blocks = sum(any(data[at : at + 2 * MiB]) for at in range(0, len(data), 2 * MiB))
        assert blocks * (2 * MiB + 512) <= file.stat().st_size <= blocks * (2 * MiB + 512) + 8192
