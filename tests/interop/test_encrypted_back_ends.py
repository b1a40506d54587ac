"""An encrypted store in a directory and in a bucket: written, read by others, pruned, unlocked anew."""

from __future__ import annotations

from mover.store import Store
from protocol.secret import Secret
from tests.crypt_fixtures import CHEAP, PASSPHRASE
from tests.store_backends import Place
from tests.store_fixtures import CHUNK, back_up, noise, restore, small_packs


def test_a_life_of_an_encrypted_store(place: Place) -> None:
    backend = place.backend()
    store = small_packs(Store.create(backend, passphrase=PASSPHRASE, cost=CHEAP), 4 * CHUNK)
    disks = {}
    for number in range(4):
        disk = noise(number % 2, 5 * CHUNK) + noise(number, 777)
        disks[back_up(store, disk, number)] = disk
    again = Store.open(backend, passphrase=PASSPHRASE, encrypted=True)
    assert {point.id: restore(again, point.id) for point in again.points()} == disks
    again.add_passphrase(Secret("new"), cost=CHEAP)
    again.keys.remove(again.config.slot)
    other = Store.open(backend, passphrase=Secret("new"))
    gone = other.forget(other.points()[:3])
    assert len(gone) == 3
    assert other.prune().deleted > 0
    last = Store.open(backend, passphrase=Secret("new"))
    assert [restore(last, point.id) for point in last.points()] == list(disks.values())[3:]
    assert list(last.verify(deep=True)) == []
    for key, _ in backend.list(""):
        assert noise(1)[:40] not in backend.get(key)
