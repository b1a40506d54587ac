"""Copies of restore points: the same disks under other keys, and no more work than what differs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mover.copy.points import CopyResult, copy_points
from mover.errors import FencedError, StoreDamagedError
from mover.events import AnyEvent, DiskFinished
from mover.store import PointDisk, PointRecord, Store
from protocol.secret import Secret
from tests import fork_server
from tests.store_fixtures import CHUNK, files_of, noise, read_disk, small_packs, text, write_disk

CHUNKS = 40
PASSPHRASE = "correct horse"
METADATA = b'{"vm": "a blob about it"}'
# Copies, and kills itself once this many bytes of a disk are on their way.
KILLED = """
import asyncio, os, signal, sys
from mover.copy.points import copy_points
from mover.events import DiskProgress
from mover.store import Store

def emit(event):
    if isinstance(event, DiskProgress) and event.done >= 1 << 20:
        os.kill(os.getpid(), signal.SIGKILL)

source, target = Store.open(sys.argv[1]), Store.open(sys.argv[2])
asyncio.run(copy_points(source, target, source.points(), emit))
"""


def states() -> list[list[bytes]]:
    """Two disks at three moments: a few chunks change, a chunk becomes zeros, the second disk grows."""
    first = bytearray(b"".join(noise(n) if n % 3 else text(n) for n in range(CHUNKS)))
    second = bytearray(noise("second", 10 * CHUNK + 512))
    found = [[bytes(first), bytes(second)]]
    first[5 * CHUNK : 6 * CHUNK] = noise("new")
    first[9 * CHUNK : 10 * CHUNK] = bytes(CHUNK)
    found.append([bytes(first), bytes(second)])
    second += noise("grown", 3 * CHUNK)
    first[30 * CHUNK : 31 * CHUNK] = noise("newer")
    found.append([bytes(first), bytes(second)])
    return found


def filled(path: Path, vms: tuple[str, ...] = ("web",), **options: Any) -> Store:
    """A store with a point for each of `states`, of each VM."""
    store = Store.create(path, **options)
    for vm in vms:
        for number, disks in enumerate(states()):
            with store.writer() as writer:
                roots = [write_disk(writer, data) for data in disks]
                writer.commit(
                    PointRecord(
                        vm_uuid=f"{vm}-uuid",
                        vm_name=vm,
                        created=1000.0 + number,
                        metadata=writer.put_blob(METADATA),
                        disks=[
                            PointDisk(position=str(n), name="d", vdi_uuid=f"{vm}-vdi{n}", size=len(data), root=root)
                            for n, (data, root) in enumerate(zip(disks, roots, strict=True))
                        ],
                    )
                )
    return store


async def copied(source: Store, target: Store) -> tuple[CopyResult, int]:
    """What became of it, and the bytes that were read for it."""
    events: list[AnyEvent] = []
    result = await copy_points(source, target, source.points(), events.append)
    return result, sum(event.read for event in events if isinstance(event, DiskFinished))


def contents(store: Store) -> list[list[bytes]]:
    return [[read_disk(store, disk.root, disk.size) for disk in point.record.disks] for point in store.points()]


def contents_or_none(store: Store) -> list[list[bytes] | None]:
    found: list[list[bytes] | None] = []
    for point in store.points():
        try:
            found.append([read_disk(store, disk.root, disk.size) for disk in point.record.disks])
        except StoreDamagedError:
            found.append(None)
    return found


@pytest.mark.parametrize("chunk", [65536, 262144])
@pytest.mark.parametrize("passphrase", [None, Secret(PASSPHRASE)], ids=["plain", "encrypted"])
async def test_a_copy_holds_every_state_and_reads_what_differs(tmp_path: Path, passphrase: Secret | None, chunk: int):
    source = filled(tmp_path / "a")
    target = Store.create(tmp_path / "b", chunk_size=chunk, passphrase=passphrase)
    result, read = await copied(source, target)
    assert len(result.copied) == 3
    assert contents(target) == states()
    assert list(target.verify(deep=True)) == []
    size = sum(len(disk) for disk in states()[0])
    assert read <= size + 7 * chunk, "the first state, then what differs"
    for original, copy in zip(source.points(), target.points(), strict=True):
        assert copy.record.created == original.record.created
        origin = copy.record.copied_from
        assert origin is not None
        assert (origin.store, origin.point) == (source.config.store_id, original.id)
        assert target.get_blob(copy.record.metadata) == METADATA
    ids = {disk.root for point in source.points() for disk in point.record.disks}
    assert ids.isdisjoint({disk.root for point in target.points() for disk in point.record.disks})


async def test_copying_twice_does_nothing(tmp_path: Path):
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copied(source, target)
    before = files_of(tmp_path / "b")
    result, read = await copied(source, target)
    assert (result.copied, len(result.present), read) == ((), 3, 0)
    assert files_of(tmp_path / "b") == before


@pytest.mark.parametrize("damaged", ["a", "b"])
async def test_nothing_is_built_on_what_a_store_has_lost(tmp_path: Path, damaged: str):
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copy_points(source, target, source.points()[:1], lambda event: None)
    for pack in (tmp_path / damaged / "packs").rglob("*.d"):
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            file.write(bytes(100))
    assert Store.open(tmp_path / damaged).repair().losses
    source, target = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    lost = source.lost_roots() | target.lost_roots()
    assert lost
    result, _ = await copied(source, target)
    assert result.failed.keys() == {
        point.id for point in source.points()[1:] if any(disk.root in lost for disk in point.record.disks)
    }
    whole = [state for state, copy in zip(states(), contents_or_none(target), strict=False) if copy == state]
    assert len(whole) == len(target.points()), "every copy that there is now holds its state"


def lose_a_chunk(path: Path, chunk: bytes) -> None:
    """Spoil the record of `chunk` in a store, and let a repair note down what lacks it."""
    for pack in (path / "packs").rglob("*.d"):
        data = pack.read_bytes()
        if (at := data.find(chunk[600:700])) >= 0:
            pack.chmod(0o644)
            pack.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
    assert Store.open(path).repair().losses


async def test_a_copy_of_which_a_part_is_lost_is_made_whole_again(tmp_path: Path):
    """By a copy, whether or not somebody repairs once more; and it is one point then, not two."""
    source, target = filled(tmp_path / "a", ("web", "other")), Store.create(tmp_path / "b")
    await copied(source, target)
    ids = [point.id for point in target.points()]
    # In the first state alone.
    lose_a_chunk(tmp_path / "b", noise(5))
    assert list(Store.open(tmp_path / "b").verify()), "what is lost is found"
    source, target = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    result, read = await copied(source, target)
    firsts = [point.id for point in source.points() if point.record.created == 1000.0]
    assert [one.source for one in result.copied] == firsts[: len(result.copied)] != []
    assert len(result.copied) + len(result.present) == len(source.points())
    assert result.failed == {}
    assert read <= 2 * sum(len(disk) for disk in states()[0])
    assert list(Store.open(tmp_path / "b").verify(deep=True)) == []
    assert [point.id for point in Store.open(tmp_path / "b").points()] == ids
    assert contents(Store.open(tmp_path / "b")) == contents(source)
    # The note of what was lost is there yet.
    target = Store.open(tmp_path / "b")
    assert target.lost_roots()
    before = files_of(tmp_path / "b" / "points")
    result, read = await copied(source, target)
    assert (result.copied, len(result.present), read) == ((), len(ids), 0)
    assert files_of(tmp_path / "b" / "points") == before


async def test_what_lacks_a_part_is_no_base_and_what_was_made_whole_is_one(tmp_path: Path):
    """A chunk of every state is lost: the first is read in full, the others where they differ from that."""
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copied(source, target)
    lose_a_chunk(tmp_path / "b", noise(4))
    target = Store.open(tmp_path / "b")
    assert len(target.lost_roots()) == 3
    result, read = await copied(source, target)
    assert len(result.copied) == 3
    assert read <= sum(len(disk) for disk in states()[0]) + 9 * CHUNK
    assert list(Store.open(tmp_path / "b").verify(deep=True)) == []
    assert contents(Store.open(tmp_path / "b")) == states()


async def test_pages_and_metadata_that_are_lost_are_copied_anew_too(tmp_path: Path):
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copied(source, target)
    ids = [point.id for point in target.points()]
    for pack in (tmp_path / "b" / "packs").rglob("*.m"):
        pack.unlink()
    assert Store.open(tmp_path / "b").repair().losses
    target = Store.open(tmp_path / "b")
    result, _ = await copied(source, target)
    assert [one.target for one in result.copied] == ids
    assert list(Store.open(tmp_path / "b").verify(deep=True)) == []
    assert contents(Store.open(tmp_path / "b")) == states()
    assert {target.get_blob(point.record.metadata) for point in target.points()} == {METADATA}


async def test_a_copy_that_was_shut_out_makes_nothing_whole(tmp_path: Path):
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copied(source, target)
    lose_a_chunk(tmp_path / "b", noise(4))
    shut_out: list[Path] = []

    def shut_it_out(event: AnyEvent) -> None:
        if isinstance(event, DiskFinished) and not shut_out:
            shut_out.extend((tmp_path / "b" / "lease").iterdir())
            for lease in shut_out:
                lease.unlink()

    with pytest.raises(FencedError):
        await copy_points(source, Store.open(tmp_path / "b"), source.points(), shut_it_out)
    assert shut_out


async def test_a_lost_copy_that_cannot_be_read_again_is_no_copy_that_is_there(tmp_path: Path):
    """Both stores have lost the same: that is told, and nothing is called present that is not."""
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copied(source, target)
    for name in ("a", "b"):
        lose_a_chunk(tmp_path / name, noise(4))
    result, _ = await copied(Store.open(tmp_path / "a"), Store.open(tmp_path / "b"))
    assert (result.copied, result.present, len(result.failed)) == ((), (), 3)
    assert all(reason.startswith("the store copied from") for reason in result.failed.values())
    assert len(Store.open(tmp_path / "b").points()) == 3


@pytest.mark.parametrize(("damaged", "side"), [("a", "copied from"), ("b", "copied to")])
async def test_whose_damage_it_is_is_said(tmp_path: Path, damaged: str, side: str):
    """The tree of the state that both stores have is gone in one of them, and nobody has repaired it yet."""
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    await copy_points(source, target, source.points()[:1], lambda event: None)
    for pack in (tmp_path / damaged / "packs").rglob("*.m"):
        pack.unlink()
    source, target = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    result, _ = await copied(source, target)
    assert len(result.failed) == 2
    for reason in result.failed.values():
        assert reason.startswith(f"the store {side}, {tmp_path / damaged}: ")
    assert len(target.points()) == 1


async def test_what_two_vms_share_is_stored_once(tmp_path: Path):
    source, target = filled(tmp_path / "a", ("web", "clone")), Store.create(tmp_path / "b")
    await copied(source, target)
    one = Store.create(tmp_path / "c")
    await copied(filled(tmp_path / "d"), one)
    size = {name: sum(path.stat().st_size for path in files_of(tmp_path / name)) for name in "bc"}
    assert size["b"] < size["c"] * 1.1


async def test_a_copy_that_was_killed_is_gone_on_with(tmp_path: Path):
    source, target = filled(tmp_path / "a"), Store.create(tmp_path / "b")
    small = [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(tmp_path / "b")]
    done = await asyncio.get_running_loop().run_in_executor(None, lambda: subprocess.run(small, check=False))
    assert done.returncode == -signal.SIGKILL
    assert list(target.verify(deep=True)) == []
    result, _ = await copied(source, Store.open(tmp_path / "b"))
    assert len(result.copied) + len(result.present) == 3
    assert contents(Store.open(tmp_path / "b")) == states()


async def test_what_an_interrupted_copy_has_stored_is_not_stored_again(tmp_path: Path):
    source, target = filled(tmp_path / "a"), small_packs(Store.create(tmp_path / "b"), 128 << 10)

    class StopError(Exception):
        pass

    def stop(event: AnyEvent) -> None:
        if isinstance(event, DiskFinished):
            raise StopError

    with pytest.raises(StopError):
        await copy_points(source, target, source.points(), stop)
    assert target.points() == []
    events: list[AnyEvent] = []
    await copy_points(source, target, source.points(), events.append)
    first = next(event for event in events if isinstance(event, DiskFinished))
    assert first.known, "packs that were full have stayed"
    assert contents(target) == states()


async def test_a_damaged_point_does_not_keep_the_others(tmp_path: Path):
    source, target = filled(tmp_path / "a", ("web", "other")), Store.create(tmp_path / "b")
    (one,) = [point for point in source.points() if point.record.vm_name == "other"][-1:]
    missing = next(source.disk(one.record.disks[0].root, one.record.disks[0].size).extents())
    assert missing.length
    # Its second disk grew in the last state only: those chunks are of no other point.
    last = noise("grown", 3 * CHUNK)[:CHUNK]
    for path in (tmp_path / "a" / "packs").rglob("*.d"):
        data = path.read_bytes()
        if (at := data.find(last[600:700])) >= 0:
            path.chmod(0o644)
            path.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
    result, _ = await copied(Store.open(tmp_path / "a"), target)
    assert len(result.copied) == 4
    assert len(result.failed) == 2
    assert all("damaged" in reason for reason in result.failed.values())


def mover(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run(
        [sys.executable, "-m", "mover", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_verb_makes_the_store_and_takes_what_is_asked_for(tmp_path: Path):
    source = filled(tmp_path / "a", ("web", "db"))
    there = str(tmp_path / "b")
    done = mover("copy", str(tmp_path / "a"), there, "--vm", "web", "--latest", "2", "--json", "--progress", "none")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    wanted = [point.id for point in source.points() if point.record.vm_name == "web"][-2:]
    assert [one["source"] for one in said["copied"]] == wanted
    assert contents(Store.open(there)) == states()[1:]
    done = mover(
        "copy", str(tmp_path / "a"), str(tmp_path / "c"), "--point", wanted[0], "--to-passphrase-env", "P", P=PASSPHRASE
    )
    assert done.returncode == 0, done.stderr
    assert contents(Store.open(tmp_path / "c", passphrase=Secret(PASSPHRASE))) == states()[1:2]
    assert mover("copy", there, str(tmp_path / "a"), "--vm", "nobody").returncode == 21
    refused = mover("copy", there, there)
    assert refused.returncode == 2
    assert "into itself" in refused.stderr
