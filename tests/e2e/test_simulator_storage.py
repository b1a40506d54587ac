"""Simulated disks in a directory: what survives a kill, what they cost, what they refuse."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mover.simulator.sparse import digest_file
from mover.simulator.storage import Disks, StorageError

KiB, MiB = 1 << 10, 1 << 20
GRANULE = 64 * KiB
WRITER = """
import sys
from pathlib import Path
from mover.simulator.storage import Disks
disks = Disks(Path(sys.argv[1]))
disks.create("d", 64 << 20)
disks.enable_cbt("d")
for number in range(1, 10**9):
    disks.write("d", number * 70_000 % (63 << 20), bytes([number % 255 + 1]) * 5000)
    if number % 7 == 0:
        disks.snapshot("d", f"s{number}")
    if number % 7 == 3 and number > 21:
        disks.data_destroy(f"s{number // 7 * 7 - 7}")
    if number % 7 == 5 and number > 21:
        disks.delete(f"s{number // 7 * 7 - 14}")
    print(number, flush=True)
"""


def bits(bitmap: bytes) -> set[int]:
    return {n for n in range(len(bitmap) * 8) if bitmap[n // 8] & (0x80 >> n % 8)}


def test_a_killed_simulator_comes_back_with_its_disks(tmp_path: Path) -> None:
    """Killed at any moment: everything reported before is there, what is there is whole, and it can go on."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    while last < 100:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    last = max([last, *(int(line) for line in process.stdout.read().split())])
    process.stdout.close()
    process.wait()

    disks = Disks(tmp_path)
    content = bytearray(64 * MiB)
    marks: set[int] = set()
    for number in range(1, last + 1):
        offset = number * 70_000 % (63 * MiB)
        content[offset : offset + 5000] = bytes([number % 255 + 1]) * 5000
        if number > last // 7 * 7:
            marks |= set(range(offset // GRANULE, (offset + 4999) // GRANULE + 1))
        if number == last // 7 * 7:
            assert disks.read(f"s{number}", 0, len(content)) == content
    # the write after the last one reported may be there, wholly or in part
    next_at = (last + 1) * 70_000 % (63 * MiB)
    found = disks.read("d", 0, len(content))
    assert found[:next_at] == content[:next_at]
    assert found[next_at + 5000 :] == content[next_at + 5000 :]
    allowed = marks | set(range(next_at // GRANULE, (next_at + 4999) // GRANULE + 1))
    if (last + 1) % 7:
        assert marks <= bits(disks.changed_blocks(f"s{last // 7 * 7}", "d")) <= allowed
    disks.snapshot("d", "after")
    disks.write("d", 0, b"goes on")
    assert disks.read("after", 0, 7) == content[:7]
    disks.close()


def test_nothing_is_merged_before_a_deletion_is_on_disk(tmp_path: Path) -> None:
    """A process that dies, or a disk that is full, while the new structure is written: the snapshot is still whole."""
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.write("d", 0, b"old" * GRANULE)
    disks.snapshot("d", "s1")
    disks.write("d", 0, b"new" * GRANULE)
    disks.snapshot("d", "s2")
    (tmp_path / "disks.new").mkdir()
    with pytest.raises(OSError):
        disks.delete("s1")
    disks.close()
    (tmp_path / "disks.new").rmdir()

    disks = Disks(tmp_path)
    assert disks.read("s1", 0, 6) == b"oldold"
    assert disks.read("s2", 0, 6) == b"newnew"
    disks.delete("s1")
    assert disks.chain_depth("s2") == 2
    assert disks.read("s2", 0, 6) == disks.read("d", 0, 6) == b"newnew"
    disks.close()


def test_the_change_log_knows_before_the_disk_does(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.enable_cbt("d")
    (tmp_path / "cbt").rmdir()
    with pytest.raises(OSError):
        disks.write("d", 0, b"x")
    assert disks.read("d", 0, 1) == b"\0"


def test_what_was_written_but_not_noted_at_a_kill_does_not_show_later(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.write("d", 0, b"a")
    (data,) = (tmp_path / "nodes").glob("*.data")
    disks.close()
    with data.open("r+b") as file:
        file.seek(5 * GRANULE)
        file.write(b"stale" * 1000)
    disks = Disks(tmp_path)
    assert disks.read("d", 5 * GRANULE, GRANULE) == bytes(GRANULE)
    disks.write("d", 5 * GRANULE + 10_000, b"fresh")
    disks.write("d", 6 * GRANULE, bytes(GRANULE))
    assert disks.read("d", 5 * GRANULE, GRANULE) == bytes(10_000) + b"fresh" + bytes(GRANULE - 10_005)


def test_a_file_becomes_a_disk_and_holes_stay_holes(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "sr")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(100 * MiB + 5)
        file.write(b"content")
        file.seek((1 << 30) - 3)
        file.write(b"end")
    for name, move in (("copied", False), ("moved", True)):
        disks.create(name, (1 << 30) + 2 * MiB)
        disks.enable_cbt(name)
        disks.snapshot(name, f"{name}-empty")
        disks.import_file(name, image, move=move)
        assert disks.read(name, 100 * MiB, 20) == bytes(5) + b"content" + bytes(8)
        assert disks.read(name, (1 << 30) - 3, 10) == b"end" + bytes(7)
        assert disks.extents(name) == [(100 * MiB, GRANULE), ((1 << 30) - GRANULE, GRANULE)]
        assert disks.physical_utilisation(name) == 2 * GRANULE
        assert bits(disks.changed_blocks(f"{name}-empty", name)) == {1600, 16383}
    assert not image.exists()
    assert disks.digest("copied") == disks.digest("moved")
    assert sum(path.stat().st_blocks for path in (tmp_path / "sr/nodes").iterdir()) * 512 < 4 * MiB


def test_a_digest_is_of_content_alone(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "sr")
    disks.create("a", 3 * MiB + 100)
    disks.create("b", 3 * MiB + 100)
    disks.write("a", 3 * MiB, b"x" * 100)
    disks.write("b", MiB, b"y" * 300_000)
    disks.snapshot("b", "s")
    disks.write("b", MiB, bytes(300_000))
    disks.write("b", 3 * MiB, b"x" * 100)
    assert disks.digest("a") == disks.digest("b") != disks.digest("s")
    (tmp_path / "raw").write_bytes(disks.read("s", 0, 3 * MiB + 100))
    assert digest_file(tmp_path / "raw") == disks.digest("s")
    assert digest_file(tmp_path / "raw", 4 * MiB) != disks.digest("s")


def test_a_full_repository_refuses_and_stays_whole(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", 10 * MiB)
    disks.write("d", 0, b"x" * MiB)
    disks.capacity = 2 * MiB
    with pytest.raises(StorageError) as caught:
        disks.write("d", 5 * MiB, b"y" * (MiB + 1))
    assert caught.value.code == 44
    assert disks.read("d", 5 * MiB, MiB) == bytes(MiB)
    disks.write("d", 0, b"z" * MiB)  # what is there can be written again
    disks.write("d", 5 * MiB, b"y" * MiB)
    assert disks.used() == 2 * MiB


def test_a_crash_of_the_host_costs_the_change_log(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.enable_cbt("d")
    disks.snapshot("d", "s1")
    assert disks.activate("d")
    disks.crash("d")
    disks.close()
    disks = Disks(tmp_path)
    assert not disks.activate("d")
    assert not disks.cbt_enabled("d")
    assert disks.cbt_enabled("s1")
    disks.enable_cbt("d")
    disks.snapshot("d", "s2")
    with pytest.raises(StorageError) as caught:
        disks.changed_blocks("s1", "s2")
    assert caught.value.code == 460


def test_bitmaps_across_growth_and_with_padding(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", 10 * GRANULE + 5)
    disks.enable_cbt("d")
    disks.snapshot("d", "s1")
    disks.write("d", 10 * GRANULE + 4, b"x")
    disks.snapshot("d", "s2")
    disks.resize("d", 100 * GRANULE)
    disks.snapshot("d", "s3")
    assert disks.changed_blocks("s1", "s2") == bytes([0, 0b00100000])
    assert disks.changed_blocks("s1", "s3") == bytes([0, 0b00100000]) + bytes(11)
    assert disks.changed_blocks("s2", "s3") == bytes(13)
    disks.bitmap_padding = 3
    assert disks.changed_blocks("s1", "s2") == bytes([0, 0b00100000, 0, 0, 0])
    assert disks.read("d", 10 * GRANULE + 4, 10) == b"x" + bytes(9)
    with pytest.raises(StorageError):
        disks.resize("d", 99 * GRANULE)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, MiB + 1), (MiB, 1), (1 << 62, 1)])
def test_nothing_is_read_or_written_outside(tmp_path: Path, offset: int, length: int) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    with pytest.raises(StorageError):
        disks.read("d", offset, length)
    with pytest.raises(StorageError):
        disks.write("d", offset, bytes(length) if length < 2 * MiB else b"")


def test_files_of_a_deleted_disk_stay_open_while_somebody_reads(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.write("d", 0, b"x" * MiB)
    with disks.pinned():
        (run,) = disks.runs("d", 0, MiB)
        disks.delete("d")
        assert run.fd is not None
        assert os.pread(run.fd, 5, 0) == b"xxxxx"
        assert not list((tmp_path / "nodes").iterdir())
    with pytest.raises(OSError):
        os.pread(run.fd, 5, 0)


def test_a_deleted_snapshot_keeps_its_content_while_somebody_reads(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.create("d", MiB)
    disks.write("d", 0, b"old" * GRANULE)
    disks.snapshot("d", "s1")
    disks.write("d", 0, b"new" * GRANULE)
    disks.snapshot("d", "s2")
    with disks.pinned():
        run, *_ = disks.runs("s1", 0, MiB)
        disks.delete("s1")
        assert run.fd is not None
        assert os.pread(run.fd, 6, 0) == b"oldold"
        assert disks.chain_depth("s2") == 3
    assert disks.chain_depth("s2") == 2
    assert disks.read("s2", 0, 6) == b"newnew"
    disks.close()
    assert Disks(tmp_path).read("s2", 0, 6) == b"newnew"
