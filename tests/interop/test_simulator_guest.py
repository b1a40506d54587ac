"""The guest's file systems before e2fsprogs, and its log before the change log of its disk."""

import zlib
from pathlib import Path

import pytest

from mover.simulator.guest import Guest, GuestError, Kind
from mover.simulator.storage import Disks, StorageError
from mover.simulator.trees import find_tree
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


@pytest.mark.parametrize("kind", ["random", "text", "repeated", "zeros"])
def test_the_guest_knows_what_it_wrote(guest: Guest, disks: Disks, kind: str) -> None:
    guest.scatter(20, 5000, kind)  # type: ignore[arg-type]
    guest.fill(SIZE - 3 * MiB, 3 * MiB, kind)  # type: ignore[arg-type]
    assert guest.log.granules == marked(disks, "empty", "d")
    assert guest.log.bytes_written == 20 * 5000 + 3 * MiB


def content_of(disks: Disks, uuid: str) -> bytes:
    return disks.read(uuid, 0, SIZE)


def differing(older: bytes, newer: bytes) -> list[int]:
    granules = range(0, SIZE, GRANULE)
    return [at // GRANULE for at in granules if older[at : at + GRANULE] != newer[at : at + GRANULE]]


def test_the_log_is_what_really_differs(guest: Guest, disks: Disks, tree: Path) -> None:
    guest.install(tree)
    # a new file system may also write zeros where there were zeros
    assert set(guest.log.granules) >= set(differing(bytes(SIZE), content_of(disks, "d")))
    for change in (
        lambda: guest.write_files({"/etc/motd": b"hello\n" * 500, "/srv/copy": tree / "big"}),
        lambda: guest.remove_files(["/big"]),
        lambda: guest.fill(SIZE - 5 * MiB - 700, 3 * MiB, "random"),
        lambda: guest.fill(SIZE - 4 * MiB, MiB, "zeros"),
        lambda: guest.fill(SIZE - 4 * MiB, MiB, "repeated"),
    ):
        before = content_of(disks, "d")
        guest.log.clear()
        change()
        assert guest.log.granules == differing(before, content_of(disks, "d")) != []


def test_kinds_of_content_are_what_they_are_called(guest: Guest, disks: Disks) -> None:
    def packed(kind: Kind) -> int:
        guest.fill(0, MiB, kind)
        return len(zlib.compress(disks.read("d", 0, MiB), 1))

    assert packed("random") > MiB > 2 * packed("text") > 4 * packed("repeated") > 4 * packed("zeros")
    guest.fill(0, MiB, "text")
    assert len({disks.read("d", at, 4096) for at in range(0, MiB, 4096)}) == 256
    guest.fill(0, MiB, "repeated")
    assert len({disks.read("d", at, 4096) for at in range(0, MiB, 4096)}) == 1


def test_two_guests_of_one_seed_write_the_same(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "sr")

    def written(name: str, seed: int) -> bytes:
        disks.create(name, SIZE)
        guest = Guest(disks, name, seed)
        guest.scatter(5, 9000)
        guest.scatter(5, 9000, "text")
        return content_of(disks, name)

    first = written("one", 7)
    assert differing(first, written("two", 7)) == []
    assert differing(first, written("three", 8)) != []


async def test_real_files_go_on_a_disk(guest: Guest, disks: Disks, tmp_path: Path) -> None:
    found = find_tree(6 * MiB)
    assert found.size >= 6 * MiB
    disks.resize("d", max(SIZE, 2 * found.size))
    guest.install(found.path)
    guest.copy_out(tmp_path / "image")
    code, output = await run("e2fsck", "-f", "-n", str(tmp_path / "image"))
    assert code == 0, output
    largest = max((path for path in found.path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    copied = await file_of(disks, "d", f'"/{largest.relative_to(found.path)}"', tmp_path)
    assert copied == largest.read_bytes()


def test_a_tree_is_the_smallest_that_will_do(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "a/b/file").write_bytes(bytes(3 * MiB + 1))
    (tmp_path / "c/file").write_bytes(bytes(8 * MiB))
    (tmp_path / "c/link").symlink_to("/nowhere")
    assert find_tree(3 * MiB, tmp_path) == (tmp_path / "a/b", 3 * MiB + 4096, 1)
    assert find_tree(4 * MiB, tmp_path) == (tmp_path / "c", 8 * MiB, 2)
    assert find_tree(9 * MiB, tmp_path).path == tmp_path
    with pytest.raises(GuestError):
        find_tree(20 * MiB, tmp_path)


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
