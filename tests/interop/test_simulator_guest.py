"""The guest's file systems before e2fsprogs, and its log before the change log of its disk."""

from pathlib import Path

import pytest

from mover.simulator.guest import Guest, GuestError
from mover.simulator.storage import Disks, StorageError
from tests.disks_fixtures import GRANULE, MiB, needs, run

SIZE = 64 * MiB
pytestmark = needs("mkfs.ext4", "debugfs", "e2fsck")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "big").write_bytes(bytes(range(256)) * 20_000)
    return tree


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    disks = Disks(tmp_path / "sr")
    disks.create("d", SIZE)
    disks.enable_cbt("d")
    disks.snapshot("d", "empty")
    return Guest(disks, "d")


@pytest.fixture
def disks(guest: Guest) -> Disks:
    return guest._disks


def marked(disks: Disks, older: str, newer: str) -> list[int]:
    bitmap = disks.changed_blocks(older, newer)
    return [n for n in range(len(bitmap) * 8) if bitmap[n // 8] & (0x80 >> n % 8)]


async def file_of(disks: Disks, uuid: str, path: str, folder: Path) -> bytes:
    """A file of the file system on a disk, as debugfs finds it; the file system is checked as well."""
    image = folder / "image"
    Guest(disks, uuid).copy_out(image)
    code, output = await run("e2fsck", "-f", "-n", str(image))
    assert code == 0, output
    code, output = await run("debugfs", "-R", f"dump {path} {folder}/file", str(image))
    assert code == 0, output
    return (folder / "file").read_bytes()


async def test_a_tree_is_installed_and_changed(guest: Guest, disks: Disks, tree: Path, tmp_path: Path) -> None:
    guest.install(tree)
    assert await file_of(disks, "d", "/big", tmp_path) == (tree / "big").read_bytes()
    assert guest.log.granules == marked(disks, "empty", "d")
    assert 0 < len(guest.log.granules) * GRANULE < SIZE
    disks.snapshot("d", "installed")
    guest.log.clear()

    text = b"changed\n" * 1000
    guest.write_files({"/etc/hostname": text, "/var/log/app/new file": tree / "big"})
    guest.remove_files(["/big"])
    assert await file_of(disks, "d", "/etc/hostname", tmp_path) == text
    assert await file_of(disks, "d", '"/var/log/app/new file"', tmp_path) == (tree / "big").read_bytes()
    assert guest.log.granules == marked(disks, "installed", "d")
    assert await file_of(disks, "installed", "/etc/hostname", tmp_path) == b"guest\n"


@pytest.mark.parametrize("kind", ["random", "text", "zeros"])
def test_the_guest_knows_what_it_wrote(guest: Guest, disks: Disks, kind: str) -> None:
    guest.scatter(20, 5000, kind)  # type: ignore[arg-type]
    guest.fill(SIZE - 3 * MiB, 3 * MiB, kind)  # type: ignore[arg-type]
    assert guest.log.granules == marked(disks, "empty", "d")
    assert guest.log.bytes_written == 20 * 5000 + 3 * MiB


def test_writing_the_same_again_counts_as_change(guest: Guest, disks: Disks) -> None:
    guest.write(0, b"same")
    disks.snapshot("d", "s")
    guest.log.clear()
    guest.write(0, b"same")
    assert guest.log.granules == marked(disks, "s", "d") == [0]


def test_a_discard_changes_nothing(guest: Guest, disks: Disks) -> None:
    guest.write(0, b"old")
    disks.snapshot("d", "s")
    guest.log.clear()
    guest.discard(0, MiB)
    assert guest.log.granules == marked(disks, "s", "d") == []
    assert disks.read("d", 0, 3) == b"old"


def test_a_disk_with_content_takes_over_no_file(guest: Guest, tree: Path) -> None:
    guest.write(0, b"old")
    with pytest.raises(StorageError):
        guest.install(tree)


def test_files_that_do_not_fit_are_refused(guest: Guest, disks: Disks, tree: Path) -> None:
    guest.install(tree)
    before = disks.digest("d")
    with pytest.raises(GuestError, match="write"):
        guest.write_files({"/too big": bytes(range(1, 129)) * (SIZE // 128 + 1)})
    assert disks.digest("d") == before
