"""The passphrases of an encrypted store: several of them, changed without touching what is stored, bounded in cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from mover.errors import NotEncryptedError, NotFoundError, PassphraseError, StoreDamagedError, UsageError
from mover.store import Cost, Store
from mover.store.keys import MAX_SLOTS
from protocol.secret import Secret
from tests.crypt_fixtures import CHEAP, PASSPHRASE, create
from tests.store_fixtures import back_up, files_of, noise, restore

OTHER = Secret("Zweites Geheimnis: äöü")


def objects(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in files_of(path)}


def test_each_of_several_passphrases_opens_the_store_and_others_do_not(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    point = back_up(store, noise(1, 1000))
    store.add_passphrase(OTHER, "the other one", CHEAP)
    for passphrase in (PASSPHRASE, OTHER):
        assert restore(Store.open(tmp_path / "store", passphrase=passphrase, encrypted=True), point) == noise(1, 1000)
    for wrong in (Secret("correct horse battery stapler"), Secret(""), Secret("ä")):
        with pytest.raises(PassphraseError, match="opens none of the 2 keys"):
            Store.open(tmp_path / "store", passphrase=wrong)
    with pytest.raises(PassphraseError, match="takes a passphrase"):
        Store.open(tmp_path / "store")


def test_a_change_leaves_every_other_object_as_it_is(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    point = back_up(store, noise(1))
    before = objects(tmp_path / "store")
    (old,) = store.keys.slots()[0]
    store.add_passphrase(OTHER, cost=CHEAP)
    store.keys.remove(old.id)
    after = objects(tmp_path / "store")
    assert {name for name in before.keys() ^ after.keys() if not name.startswith("keys/")} == set()
    assert all(after[name] == data for name, data in before.items() if not name.startswith("keys/"))
    assert restore(Store.open(tmp_path / "store", passphrase=OTHER), point) == noise(1)
    with pytest.raises(PassphraseError):
        Store.open(tmp_path / "store", passphrase=PASSPHRASE)


def test_the_last_passphrase_stays(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    (only,) = store.keys.slots()[0]
    with pytest.raises(UsageError, match="the last key"):
        store.keys.remove(only.id)
    with pytest.raises(NotFoundError):
        store.keys.remove("0" * 16)
    Store.open(tmp_path / "store", passphrase=PASSPHRASE)


def test_there_are_not_too_many(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    for number in range(MAX_SLOTS - 1):
        store.add_passphrase(Secret(str(number)), cost=CHEAP)
    with pytest.raises(UsageError, match="as many as there may be"):
        store.add_passphrase(Secret("one more"), cost=CHEAP)
    for label in ("x" * 65, "two\nlines"):
        with pytest.raises(UsageError, match="label"):
            create(tmp_path / "other" / str(len(label))).add_passphrase(OTHER, label, CHEAP)


def test_a_plain_store_is_refused_where_an_encrypted_one_is_meant(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with pytest.raises(NotEncryptedError):
        Store.open(tmp_path / "store", passphrase=PASSPHRASE, encrypted=True)
    with pytest.raises(NotEncryptedError):
        store.add_passphrase(OTHER)
    Store.open(tmp_path / "store", passphrase=PASSPHRASE)


def test_what_is_made_in_a_place_that_is_taken_leaves_no_key(tmp_path: Path) -> None:
    create(tmp_path / "store")
    with pytest.raises(UsageError, match="already"):
        Store.create(tmp_path / "store", passphrase=OTHER, cost=CHEAP)
    assert len(list((tmp_path / "store/keys").iterdir())) == 1


def test_a_new_key_costs_whoever_guesses(tmp_path: Path) -> None:
    slot = Store.create(tmp_path / "store", passphrase=PASSPHRASE).keys.slots()[0][0]
    assert slot.cost == Cost(memory=65536, passes=3, lanes=4)
    Store.open(tmp_path / "store", passphrase=PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", 1 << 21),
        ("memory", 7),
        ("memory", True),
        ("memory", "64"),
        ("passes", 17),
        ("passes", 0),
        ("lanes", 17),
        ("lanes", 1.0),
        ("salt", "00"),
        ("wrapped", "00"),
        ("wrapped", "zz"),
        ("label", 7),
        ("created", None),
        ("version", 2),
        ("kdf", "none"),
        ("store_id", "0" * 32),
        ("format", "x"),
    ],
)
def test_a_key_that_asks_too_much_or_is_none_is_refused_before_anything_is_computed(
    tmp_path: Path, field: str, value: object
) -> None:
    create(tmp_path / "store")
    (file,) = (tmp_path / "store/keys").iterdir()
    fields = json.loads(file.read_bytes())
    fields[field] = value
    fields.pop("check")
    fields["check"] = blake3(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    file.chmod(0o600)
    file.write_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(StoreDamagedError, match=f"keys/{file.name}"):
        Store.open(tmp_path / "store", passphrase=PASSPHRASE)


def test_a_description_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Whoever can write to the store must not be able to change what is written, and how."""
    create(tmp_path / "store")
    file = tmp_path / "store/store.json"
    fields = json.loads(file.read_bytes())
    del fields["check"]
    fields["pack_target"] = 1 << 20
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    fields["check"] = blake3(text).hexdigest()
    file.chmod(0o600)
    file.write_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(StoreDamagedError, match=r"store\.json is not what it was"):
        Store.open(tmp_path / "store", passphrase=PASSPHRASE)


def test_two_stores_with_keys_of_their_own_in_one_process(tmp_path: Path) -> None:
    one, two = create(tmp_path / "one"), Store.create(tmp_path / "two", passphrase=OTHER, cost=CHEAP)
    points = back_up(one, noise(1)), back_up(two, noise(1))
    roots = {store.points()[0].record.disks[0].root for store in (one, two)}
    assert len(roots) == 2, "the ids of one store say nothing about those of another"
    assert restore(one, points[0]) == restore(two, points[1]) == noise(1)


def test_nothing_shows_the_key(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    key = store.config.key
    shown = repr(store.config) + repr(store._identity) + repr(vars(store)) + repr(store.keys)
    for secret in (key, *(getattr(store._identity, name) for name in ("chunk", "page", "blob", "check"))):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert all(key not in data and key.hex().encode() not in data for data in objects(tmp_path / "store").values())
