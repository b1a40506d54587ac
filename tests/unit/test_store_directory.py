"""A directory as a back end: put-if-absent, ranged get, list, delete."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mover.errors import StoreIoError, UsageError
from mover.store.backend import ObjectMissingError
from mover.store.directory import DirectoryBackend
from mover.store.places import open_backend


@pytest.fixture
def backend(tmp_path: Path) -> DirectoryBackend:
    made = DirectoryBackend(str(tmp_path / "deep" / "store"))
    made.make_root()
    return made


def test_an_object_is_written_once(backend: DirectoryBackend) -> None:
    assert backend.put("a/b/c", b"first")
    assert not backend.put("a/b/c", b"second")
    assert backend.get("a/b/c") == b"first"
    assert bytes(backend.map("a/b/c")) == b"first"
    assert list(backend.list("a/")) == [("a/b/c", 5)]
    assert list(backend.list("")) == [("a/b/c", 5)]
    assert not os.listdir(Path(backend.location, "tmp"))


def test_ranges(backend: DirectoryBackend) -> None:
    backend.put("x", b"0123456789")
    assert backend.get("x", 3, 4) == b"3456"
    assert backend.get("x", 8, 4) == b"89"
    assert backend.get("x", 20, 4) == b""
    assert backend.get("x", 7) == b"789"
    into = bytearray(6)
    assert backend.read_into("x", 2, memoryview(into)) == 6
    assert into == b"234567"
    assert backend.read_into("x", 7, memoryview(into)) == 3


def test_what_is_not_there(backend: DirectoryBackend) -> None:
    for ask in (backend.get, backend.map):
        with pytest.raises(ObjectMissingError):
            ask("nothing/here")
    assert list(backend.list("nothing/")) == []
    backend.delete("nothing/here")
    backend.put("x", b"1")
    assert backend.get("x") == b"1"
    backend.delete("x")
    with pytest.raises(ObjectMissingError):
        backend.get("x")
    assert backend.put("x", b"2")
    assert backend.get("x") == b"2"


def test_uploads_are_invisible_until_committed(backend: DirectoryBackend) -> None:
    upload = backend.create("x")
    upload.write([b"a", bytearray(b"b"), memoryview(b"c")])
    upload.write([b"."] * 5000)
    assert list(backend.list("")) == []
    assert upload.commit()
    upload.abort()
    assert backend.get("x") == b"abc" + b"." * 5000
    dropped = backend.create("y")
    dropped.write([b"a"])
    dropped.abort()
    assert [key for key, _ in backend.list("")] == ["x"]


def test_one_of_many_creators_wins(backend: DirectoryBackend) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            won = list(pool.map(lambda who, key=f"race/{number}": backend.put(key, bytes([who])), range(8)))
            assert won.count(True) == 1
            assert backend.get(f"race/{number}") == bytes([won.index(True)])


def test_more_files_than_may_be_open(backend: DirectoryBackend) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        backend.put(f"many/{number}", b"%d" % number)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: backend.get(f"many/{number}"), [*range(300), *range(300)])) == [
            b"%d" % (number % 300) for number in range(600)
        ]
    assert len(os.listdir("/proc/self/fd")) - before <= 140
    backend.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_places(tmp_path: Path) -> None:
    assert open_backend(tmp_path).location == str(tmp_path)
    assert open_backend(f"file://{tmp_path}/a%20b").location == f"{tmp_path}/a b"
    for wrong in ("gs://bucket/prefix", "file://elsewhere/x", "s3:///prefix", "s3://bucket/a//b"):
        with pytest.raises(UsageError):
            open_backend(wrong)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreIoError):
        open_backend(tmp_path / "file" / "below", make=True)


def test_what_somebody_else_has_removed_is_missing(tmp_path: Path) -> None:
    """Even if this process has read it before, and has it open yet."""
    ours, others = DirectoryBackend(str(tmp_path)), DirectoryBackend(str(tmp_path))
    assert ours.put("lease/a", b"alive")
    assert ours.get("lease/a") == b"alive"
    others.delete("lease/a")
    with pytest.raises(ObjectMissingError):
        ours.get("lease/a", 0, 1)
