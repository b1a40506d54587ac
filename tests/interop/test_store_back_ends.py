"""What a store may rest on, in a directory and in a bucket: put-if-absent, ranged get, list, delete."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mover.errors import MoverError, StoreIoError, StoreMissingError
from mover.store import Store
from mover.store.backend import ObjectMissingError
from mover.store.probe import refuse_unfit
from mover.store.s3 import S3Backend
from protocol.secret import Secret
from tests.crypt_fixtures import CHEAP
from tests.store_backends import Place, Weed
from tests.store_fixtures import CHUNK, back_up, noise, restore


def test_an_object_is_put_once(place: Place) -> None:
    backend = place.backend()
    assert backend.put("a/b/c", b"first")
    assert not backend.put("a/b/c", b"second")
    assert not backend.put("a/b/c", b"first"), "equal bytes make no difference"
    assert backend.get("a/b/c") == b"first"
    assert backend.put("a/b/empty", b"")
    assert not backend.put("a/b/empty", b"")
    assert backend.get("a/b/empty") == b""
    assert backend.get("a/b/empty", 0, 1) == b""
    assert sorted(backend.list("a/")) == sorted(backend.list("")) == [("a/b/c", 5), ("a/b/empty", 0)]


def test_ranges(place: Place) -> None:
    backend = place.backend()
    backend.put("x", b"0123456789")
    assert backend.get("x", 3, 4) == b"3456"
    assert backend.get("x", 8, 4) == b"89"
    assert backend.get("x", 10, 4) == b""
    assert backend.get("x", 20, 4) == b""
    assert backend.get("x", 2, 0) == b""
    assert backend.get("x", 7) == b"789"
    into = bytearray(6)
    assert backend.read_into("x", 2, memoryview(into)) == 6
    assert into == b"234567"
    assert backend.read_into("x", 7, memoryview(into)) == 3
    assert into[:3] == b"789"
    assert backend.read_into("x", 10, memoryview(into)) == 0


def test_what_is_missing(place: Place) -> None:
    backend = place.backend()
    for ask in (
        backend.get,
        lambda key: backend.get(key, 1, 1),
        lambda key: backend.read_into(key, 0, memoryview(b"x")),
    ):
        with pytest.raises(ObjectMissingError):
            ask("nothing/here")
    assert list(backend.list("nothing/")) == []
    backend.delete("nothing/here")
    backend.put("x", b"1")
    backend.delete("x")
    with pytest.raises(ObjectMissingError):
        backend.get("x")
    assert backend.put("x", b"2")
    assert backend.get("x") == b"2"


def test_a_list_is_of_folders(place: Place) -> None:
    backend = place.backend()
    for key in ("ab/1", "a/1", "a/b/2", "abc"):
        backend.put(key, b"x")
    assert sorted(key for key, _ in backend.list("a/")) == ["a/1", "a/b/2"]
    assert len(list(backend.list(""))) == 4


def test_a_list_longer_than_a_page(place: Place) -> None:
    backend = place.backend()
    keys = [f"many/{number:04}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: backend.put(key, b"x"), keys))
    assert sorted(key for key, _ in backend.list("many/")) == keys


@pytest.mark.parametrize("length", [5000, 17 << 20, 40 << 20])
def test_uploads_are_invisible_until_committed(place: Place, length: int) -> None:
    """Gathered in memory, and what is too large for that in parts."""
    backend = place.backend()
    content = noise(length, length)
    upload = backend.create("x")
    for start in range(0, length, 1 << 20):
        upload.write([content[start : start + 1000], memoryview(content)[start + 1000 : start + (1 << 20)]])
    assert list(backend.list("")) == []
    assert upload.commit()
    upload.abort()
    assert list(backend.list("")) == [("x", length)]
    into = memoryview(bytearray(length))
    assert backend.read_into("x", 0, into) == length
    assert into == content
    assert backend.get("x", length - 100) == content[-100:]
    dropped = backend.create("y")
    dropped.write([content])
    dropped.abort()
    again = backend.create("x")
    again.write([content[::-1]])
    assert not again.commit()
    assert [key for key, _ in backend.list("")] == ["x"]
    assert backend.get("x", 0, 100) == content[:100]


def test_one_of_many_wins(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        for number in range(3):
            clients = [place.backend() for _ in range(4)]
            won = list(pool.map(lambda who, at=clients, key=f"race/{number}": at[who].put(key, bytes([who])), range(4)))
            assert won.count(True) == 1
            assert place.read(f"race/{number}") == bytes([won.index(True)])


def test_a_fit_place_is_found_fit(place: Place) -> None:
    refuse_unfit(place.backend())
    assert place.objects() == {}


def test_a_store_by_its_url(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint and keys out of the environment, as the tools of AWS have them."""
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{weed.bucket}/by/url"
    with pytest.raises(StoreMissingError):
        Store.open(url)
    point = back_up(Store.create(url), noise(1, 3 * CHUNK))
    assert restore(Store.open(url + "/"), point) == noise(1, 3 * CHUNK)


def test_an_encrypted_store(place: Place) -> None:
    secret = Secret("a passphrase")
    store = place.create(passphrase=secret, cost=CHEAP)
    first = back_up(store, noise(1, 30 * CHUNK), 1)
    second = back_up(store, noise(1, 20 * CHUNK) + noise(2, 10 * CHUNK), 2)
    with pytest.raises(MoverError):
        Store.open(place.backend(), passphrase=Secret("wrong"))
    again = Store.open(place.backend(), passphrase=secret)
    assert restore(again, first) == noise(1, 30 * CHUNK)
    assert len(again.forget([again.point(first)])) == 1
    assert again.prune(min_live=0.9).deleted
    again = Store.open(place.backend(), passphrase=secret)
    assert restore(again, second) == noise(1, 20 * CHUNK) + noise(2, 10 * CHUNK)
    assert list(again.verify(deep=True)) == []


def test_who_may_not(weed: Weed) -> None:
    for access, hint in (
        (weed.access(secret_access_key=Secret("wrong")), "secret"),
        (weed.access(access_key_id="nobody"), "access key"),
    ):
        backend = S3Backend(weed.bucket, "x", access)
        for ask in (
            lambda at=backend: at.get("a"),
            lambda at=backend: at.put("a", b""),
            lambda at=backend: list(at.list("")),
        ):
            with pytest.raises(StoreIoError, match=weed.endpoint) as caught:
                ask()
            assert hint in caught.value.hint
            assert "wrong" not in str(caught.value)


def test_no_such_bucket(weed: Weed) -> None:
    backend = S3Backend("no-such-bucket", "x", weed.access())
    for ask in (
        lambda: Store.open(backend),
        lambda: backend.put("a", b""),
        lambda: list(backend.list("")),
        lambda: backend.delete("x"),
    ):
        with pytest.raises(StoreIoError, match="no-such-bucket") as caught:
            ask()
        assert "make the bucket" in caught.value.hint
    with pytest.raises(StoreIoError):
        Store.create("s3://no-such-bucket/x", s3=weed.access())


def test_nobody_there() -> None:
    backend = S3Backend("bucket", "x", Weed.access(Weed(None, 1, ()), retry_for=0.5))  # type: ignore[arg-type]
    for ask in (lambda: backend.get("a"), lambda: backend.put("a", b""), lambda: list(backend.list(""))):
        with pytest.raises(StoreIoError, match=r"http://127.0.0.1:1: it cannot be connected to"):
            ask()
