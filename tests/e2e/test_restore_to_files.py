"""Restores to files: sparse, never under their name before they are whole, and gone on with where they ended."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mover.backup.metadata import VmMetadata, encode
from mover.errors import StoreDamagedError, TargetError
from mover.events import DiskFinished, DiskPlanned, DiskProgress, Event
from mover.restore.files import Format, restore_to_files
from mover.store import Store
from tests.disks_fixtures import needs
from tests.serve_fixtures import MOVER, MiB, patchy, store_with
from tests.store_fixtures import CHUNK, files_of, noise

METADATA = VmMetadata(
    vm={"name_label": "web"}, vbds={}, vdis={}, vifs={}, networks={}, pifs={}, srs={}, vtpms={}, vtpm_contents={},
    software_version={}, ova_xml="<value/>",
)  # fmt: skip
# Most of it data, with a hole of 8 MiB, and an end within a chunk.
LARGE = noise("first", 16 * MiB) + bytes(8 * MiB) + noise("second", 17 * MiB + 512)
FORMATS = ("raw", pytest.param("vhd", marks=needs("qemu-img")))
# Restores, and kills itself once the first part of a disk is written.
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from mover.events import DiskProgress
from mover.restore.files import restore_to_files
from mover.store import Store

def emit(event):
    if isinstance(event, DiskProgress) and event.done:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store.open(sys.argv[1])
asyncio.run(restore_to_files(store, store.point("latest"), Path(sys.argv[2]), form=sys.argv[3], emit=emit))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("files") / "store"
    with_disks = store_with(path, [("root", LARGE), ("data", patchy())], encode(METADATA))
    yield with_disks
    with_disks.close()


@dataclass
class Restored:
    files: list[Path]
    events: list[Event]

    @property
    def read(self) -> list[int]:
        """Bytes read from the store, disk by disk."""
        return [event.read for event in self.events if isinstance(event, DiskFinished)]

    @property
    def known(self) -> list[int]:
        """Bytes that were there already, disk by disk."""
        return [event.known for event in self.events if isinstance(event, DiskFinished)]


async def restore(store: Store, folder: Path, form: Format, point: str = "latest") -> Restored:
    events: list[Event] = []
    files = await restore_to_files(store, store.point(point), folder, form=form, emit=events.append)
    assert not list(folder.glob("*.partial"))
    return Restored(files, events)


def content(file: Path, folder: Path) -> bytes:
    """What a raw file or a VHD holds; a VHD as another program reads it."""
    if file.suffix == ".raw":
        return file.read_bytes()
    raw = folder / "from-vhd"
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", file, raw], check=True, timeout=60)
    return raw.read_bytes()


def begin_and_be_killed(store: Store, folder: Path, form: Format) -> int:
    """The exit code of a restore that got as far as the first part of the first disk."""
    command = [sys.executable, "-c", KILLED, store.location, str(folder), form]
    return subprocess.run(command, timeout=60, check=False).returncode


def stored(data: bytes) -> int:
    """Bytes of chunks that are not zeros."""
    chunks = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
    return sum(len(chunk) for chunk in chunks if any(chunk))


def allocated(file: Path) -> int:
    return file.stat().st_blocks * 512


async def test_a_file_is_whole_and_synced_before_it_has_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the kernel writes it while it is being filled does not stand for the sync at the end."""
    folder = tmp_path / "out"
    synced: list[tuple[str, bytes]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)
        synced.append((path.name, path.read_bytes() if path.is_file() else b""))

    monkeypatch.setattr(os, "fsync", watched)
    await restore(store, folder, "raw")
    assert [name for name, _ in synced] == ["web-0.raw.partial", "out", "web-1.raw.partial", "out"]
    assert synced[0][1] == LARGE and synced[2][1] == patchy()


@pytest.mark.parametrize("form", FORMATS)
async def test_files_are_as_sparse_as_the_disk(store: Store, tmp_path: Path, form: Format) -> None:
    done = await restore(store, tmp_path / "out", form)
    for file, data in zip(done.files, (LARGE, patchy()), strict=True):
        assert content(file, tmp_path) == data
        assert file.stat().st_mode & 0o777 == 0o600
        # Blocks of the file system are smaller than a chunk, and VHD's tables and bitmaps lie between.
        assert allocated(file) <= stored(data) + 64 * 1024 * (form == "vhd") + 4096
    assert done.read == [stored(LARGE), stored(patchy())]
    assert json.loads((tmp_path / "out/web.json").read_bytes())["vm"] == {"name_label": "web"}
    assert (tmp_path / "out/web.ova.xml").read_text() == "<value/>"


@pytest.mark.parametrize("form", FORMATS)
async def test_a_second_restore_finds_everything_and_writes_nothing(store: Store, tmp_path: Path, form: Format) -> None:
    first = await restore(store, tmp_path, form)
    before = [(file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in first.files]
    second = await restore(store, tmp_path, form)
    assert second.files == first.files
    assert second.read == [0, 0]
    assert second.known == first.read
    assert [(file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in second.files] == before


@pytest.mark.parametrize("form", FORMATS)
async def test_after_a_kill_it_goes_on_where_it_was(store: Store, tmp_path: Path, form: Format) -> None:
    folder = tmp_path / "out"
    assert begin_and_be_killed(store, folder, form) == -signal.SIGKILL
    assert [file.name for file in folder.glob(f"*.{form}*")] == [f"web-0.{form}.partial"]
    done = await restore(store, folder, form)
    assert [content(file, tmp_path) for file in done.files] == [LARGE, patchy()]
    # The kill came after the first part of 2 MiB, when the seven others that are dealt with at once can be written too.
    assert 2 * MiB <= done.known[0] <= 16 * MiB
    assert done.read[0] == stored(LARGE) - done.known[0]
    planned = [event for event in done.events if isinstance(event, DiskPlanned)]
    progress = [event for event in done.events if isinstance(event, DiskProgress) and event.disk == "0"]
    assert progress[-1].done == planned[0].to_read


@pytest.mark.parametrize("form", FORMATS)
async def test_after_an_interruption_it_goes_on_where_it_was(store: Store, tmp_path: Path, form: Format) -> None:
    async with asyncio.TaskGroup() as group:

        def interrupt(event: Event) -> None:
            if isinstance(event, DiskProgress) and event.done:
                restoring.cancel()

        restoring = group.create_task(
            restore_to_files(store, store.point("latest"), tmp_path / "out", form=form, emit=interrupt)
        )
    assert restoring.cancelled()
    done = await restore(store, tmp_path / "out", form)
    assert [content(file, tmp_path) for file in done.files] == [LARGE, patchy()]
    assert 2 * MiB <= done.known[0] < stored(LARGE)


@pytest.mark.parametrize("form", FORMATS)
async def test_whatever_an_unfinished_file_holds_the_result_is_right(
    store: Store, tmp_path: Path, form: Format
) -> None:
    """Data where holes belong, chunks that are damaged, half written or not there, a file too long."""
    whole = (await restore(store, tmp_path / "whole", form)).files[0].read_bytes()
    folder = tmp_path / "out"
    folder.mkdir()
    partial = folder / f"web-0.{form}.partial"
    damaged = bytearray(whole + b"surplus" * 1000)
    damaged[:4] = b"\xff" * 4  # a chunk; of a VHD the head
    damaged[5 * MiB] ^= 1
    damaged[7 * MiB : 9 * MiB] = bytes(2 * MiB)
    damaged[18 * MiB : 18 * MiB + 5] = b"stale"  # in the hole; of a VHD, in another block, whose place is elsewhere
    partial.write_bytes(damaged)
    done = await restore(store, folder, form)
    assert done.files[0].read_bytes() == whole
    assert content(done.files[0], tmp_path) == LARGE
    assert 0 < done.read[0] < 6 * MiB


@pytest.mark.parametrize("form", FORMATS)
async def test_holes_with_something_in_them_are_emptied(tmp_path: Path, form: Format) -> None:
    data = bytes(3 * MiB) + noise("middle", CHUNK) + bytes(3 * MiB)
    with_holes = store_with(tmp_path / "store", [("root", data)])
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/web-0.{form}.partial").write_bytes(noise("rubbish", 9 * MiB))
    done = await restore(with_holes, tmp_path / "out", form)
    assert content(done.files[0], tmp_path) == data
    with_holes.close()


@pytest.mark.parametrize("form", FORMATS)
async def test_a_file_of_another_point_stays_until_its_successor_is_whole(tmp_path: Path, form: Format) -> None:
    disks = [noise("old", 5 * MiB), noise("new", 5 * MiB)]
    path = tmp_path / "store"
    one = store_with(path, [("root", disks[0])])
    done = await restore(one, tmp_path / "out", form)
    old = done.files[0].read_bytes()
    other = store_with(tmp_path / "other", [("root", disks[1])])
    pack = max(files_of(tmp_path / "other"), key=lambda file: file.stat().st_size)
    good = pack.read_bytes()
    pack.write_bytes(good[: len(good) // 2] + b"\xff" * 8 + good[len(good) // 2 + 8 :])
    with pytest.raises(StoreDamagedError):
        await restore(other, tmp_path / "out", form)
    assert done.files[0].read_bytes() == old
    assert (tmp_path / f"out/web-0.{form}.partial").exists()
    pack.write_bytes(good)
    again = await restore(other, tmp_path / "out", form)
    assert content(again.files[0], tmp_path) == disks[1]
    assert again.known[0] > 0
    one.close()
    other.close()


async def test_what_is_damaged_does_not_keep_the_rest_from_being_restored(tmp_path: Path) -> None:
    disks = [("root", noise("root", 5 * MiB)), ("data", noise("data", 5 * MiB)), ("logs", noise("logs", 5 * MiB))]
    damaged = store_with(tmp_path / "store", disks, encode(METADATA))
    for file in files_of(tmp_path / "store"):
        content = bytearray(file.read_bytes())
        for _, data in disks[::2]:
            if (at := content.find(data[MiB : MiB + 64])) >= 0:
                content[at : at + 8] = bytes(8)
        file.write_bytes(content)
    with pytest.raises(StoreDamagedError) as caught:
        await restore_to_files(damaged, damaged.point("latest"), tmp_path / "out", emit=lambda event: None)
    assert str(caught.value).startswith("web, disk 0 (root): ")
    also, whole = caught.value.__notes__
    assert also.startswith("also: web, disk 2 (logs): ")
    assert whole == f"whole: {tmp_path}/out/web-1.raw"
    assert (tmp_path / "out/web-1.raw").read_bytes() == disks[1][1]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "web-0.raw.partial", "web-1.raw", "web-2.raw.partial", "web.json", "web.ova.xml",
    ]  # fmt: skip
    damaged.close()


async def test_two_restores_do_not_write_one_file(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "web-0.raw.partial").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TargetError, match=r"another restore is writing .*web-0\.raw\.partial"):
            await restore(store, tmp_path, "raw")
    await restore(store, tmp_path, "raw")


async def test_a_symlink_is_replaced_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/web-0.raw").symlink_to(tmp_path / "target")
    (tmp_path / "out/web-1.raw.partial").symlink_to(tmp_path / "target")
    with pytest.raises(TargetError, match=r"cannot write .*web-1\.raw\.partial"):
        await restore(store, tmp_path / "out", "raw")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert (tmp_path / "out/web-0.raw").read_bytes() == LARGE
    assert not (tmp_path / "out/web-0.raw").is_symlink()


def test_a_full_disk_says_how_to_go_on(store: Store, tmp_path: Path) -> None:
    command = [*MOVER, "restore", store.location, "latest", "--to", str(tmp_path / "out"), "--progress", "none"]
    limited = ["sh", "-c", 'ulimit -f 8192; trap "" XFSZ; exec "$@"', "sh", *command]  # blocks of 512 bytes, or 1024
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 25, done.stderr
    assert done.stderr.splitlines() == [
        f"error: cannot write {tmp_path}/out/web-0.raw.partial: File too large",
        "hint: the same command goes on where this one ended",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/web-0.raw").read_bytes() == LARGE


@needs("qemu-img")
async def test_a_store_of_large_chunks(tmp_path: Path) -> None:
    """A chunk is more than what is written at a time elsewhere."""
    data = noise("large chunks", 9 * MiB + 512)
    large = Store.create(str(tmp_path / "store"), chunk_size=4 * MiB)
    with large.writer() as writer:
        from tests.store_fixtures import point_of

        tree = writer.tree(len(data))
        tree.put(
            0, b"".join(writer.seal(memoryview(data)[at : at + 4 * MiB]).ids for at in range(0, len(data), 4 * MiB))
        )
        writer.commit(point_of(tree.finish(), len(data), vm="web"))
    for form in ("raw", "vhd"):
        for _ in range(2):
            done = await restore(large, tmp_path / form, form)
            assert content(done.files[0], tmp_path) == data
    large.close()
