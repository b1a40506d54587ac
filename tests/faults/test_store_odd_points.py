"""Restore points whose checksum is right and whose content no mover of this version writes.

In a plain store the key is public: who can write there can make them. One of them must not be in the way of the others,
and what a newer mover has made must not be taken for damage.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mover.errors import FormatTooNewError, StoreDamagedError
from mover.job.model import RetentionSection
from mover.retention import judge
from mover.store import Store
from mover.store.names import PointName, new_writer_id
from tests import fork_server
from tests.store_fixtures import CHUNK, back_up, files_of, noise, restore

DEEP = b'{"created":2.0,"disks":[],"format":1,"later":' + b"[" * (1 << 18) + b"]" * (1 << 18)
DISK = {"name": "d", "position": "0", "root": "A" * 43 + "=", "size": CHUNK, "vdi_uuid": "v"}
ODD: dict[str, dict[str, object]] = {
    "metadata of 5 bytes": {"metadata": "AAAAAAA="},
    "a root of 5 bytes": {"disks": [{**DISK, "root": "AAAAAAA="}]},
    "a disk of a negative size": {"disks": [{**DISK, "size": -1}]},
    "a count of 400 digits": {"disks": [{**DISK, "changed": 10**400}]},
    "made in the far future": {"created": 1e18},
    "made long ago": {"created": -1e18},
    "made when no time zone has a date": {"created": 253402300799.0},
    "in order in the far future": {"order": 1e300},
    "in order before everything": {"order": -1.0},
    "not made at any time": {"created": None},
}


def point(**fields: object) -> bytes:
    about = {"created": 2.0, "disks": [], "format": 1, "vm_name": "odd", "vm_uuid": "odd", **fields}
    return json.dumps(about, sort_keys=True, separators=(",", ":")).encode()


def put(store: Store, body: bytes) -> str:
    """Put a point with this content and the checksum it should have; the name of the object."""
    name = PointName(new_writer_id(), 0)
    store._backend.put(name.key, body + store._identity.checksum(body))
    return name.key


def mover(*arguments: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run([sys.executable, "-m", "mover", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("body", [*(point(**fields) for fields in ODD.values()), DEEP], ids=[*ODD, "deep nesting"])
def test_an_odd_point_is_damage_and_in_the_way_of_no_other(tmp_path: Path, body: bytes) -> None:
    store = Store.create(tmp_path)
    good = back_up(store, noise("a"), 1.0)
    if body is DEEP:
        body += b',"vm_name":"odd","vm_uuid":"odd"}'
    key = put(store, body)
    found, damaged = Store.open(tmp_path).readable_points()
    assert ([one.id for one in found], [one.object for one in damaged]) == ([good], [key])
    assert [damage.object for damage in Store.open(tmp_path).verify()] == [key]
    assert [name for name, _ in Store.open(tmp_path).repair().helpless] == [key]
    with pytest.raises(StoreDamagedError, match=key):
        Store.open(tmp_path).prune()
    assert [verdict.kept for verdict in judge(found, RetentionSection(keep_daily=3))] == [True]
    assert restore(Store.open(tmp_path), good) == noise("a")
    listed = mover("list", str(tmp_path))
    assert (listed.returncode, good in listed.stdout, key in listed.stderr) == (13, True, True)


@pytest.mark.parametrize("created", [0.0, 1.0, 4102444800.0, 253370764799.0])
def test_a_point_of_any_year_that_a_clock_may_say_is_good(tmp_path: Path, created: float) -> None:
    store = Store.create(tmp_path)
    assert [one.id for one in store.points()] == []
    made = back_up(store, noise("a"), created)
    assert list(Store.open(tmp_path).verify()) == []
    assert judge(Store.open(tmp_path).points(), RetentionSection(keep_daily=3))[0].kept
    assert made in mover("list", str(tmp_path)).stdout


@pytest.mark.parametrize("created", [-1.0, 1e18, float("nan"), float("inf")])
def test_what_could_not_be_read_is_not_committed(tmp_path: Path, created: float) -> None:
    store = Store.create(tmp_path)
    with pytest.raises(ValueError, match="year"):
        back_up(store, noise("a"), created)
    assert Store.open(tmp_path).points() == []
    assert list(Store.open(tmp_path).verify()) == []


@pytest.mark.parametrize("fields", [{}, {"disks": "elsewhere", "created": "yesterday"}], ids=["alike", "unlike"])
def test_a_point_of_a_newer_mover_is_left_alone(tmp_path: Path, fields: dict[str, object]) -> None:
    """Whatever else is in it. Nobody is told to remove it, nothing that it may need is deleted, the rest is used."""
    store = Store.create(tmp_path)
    gone, good = back_up(store, noise("a"), 1.0), back_up(store, noise("b"), 3.0)
    key = put(store, point(format=2, **fields))
    store.forget([store.point(gone)])
    before = {path: path.read_bytes() for path in files_of(tmp_path) if path.parts[-2] != "scrub"}
    refused: list[Callable[[], object]] = [
        lambda: Store.open(tmp_path).points(),
        lambda: Store.open(tmp_path).point("vm"),
        lambda: Store.open(tmp_path).point("latest"),
        lambda: Store.open(tmp_path).prune(),
        lambda: Store.open(tmp_path).would_prune(),
    ]
    for verb in refused:
        with pytest.raises(FormatTooNewError, match=rf"{key}: it was made by a newer mover, in format 2") as caught:
            verb()
        assert "remove" not in caught.value.hint
        assert "damaged" not in str(caught.value)
    for damages in (Store.open(tmp_path).readable_points()[1], list(Store.open(tmp_path).verify())):
        (damage,) = damages
        assert (damage.object, damage.reason) == (key, "it was made by a newer mover, in format 2; use that one")
    assert Store.open(tmp_path).repair().losses == ()
    assert restore(Store.open(tmp_path), good) == noise("b")
    assert {path: path.read_bytes() for path in before} == before
    back_up(Store.open(tmp_path), noise("c"), 4.0)
    done = mover("prune", str(tmp_path))
    assert done.returncode == FormatTooNewError.exit_code
    assert "newer mover" in done.stderr and "remove" not in done.stderr


def test_a_forgotten_point_of_a_newer_mover_stops_a_prune_too(tmp_path: Path) -> None:
    """It may be the base of a backup that is running."""
    store = Store.create(tmp_path)
    back_up(store, noise("a"), 1.0)
    key = put(store, point(format=2))
    # There as well: one that only the trash has is given up.
    (tmp_path / "trash").mkdir(exist_ok=True)
    (tmp_path / key.replace("points/", "trash/")).write_bytes((tmp_path / key).read_bytes())
    with pytest.raises(FormatTooNewError, match="nothing is deleted"):
        Store.open(tmp_path).prune()


def test_a_damaged_point_is_told_from_one_of_a_newer_mover(tmp_path: Path) -> None:
    """A format that no checksum vouches for says nothing."""
    store = Store.create(tmp_path)
    back_up(store, noise("a"), 1.0)
    key = put(store, point(format=2))
    data = bytearray((tmp_path / key).read_bytes())
    data[-1] ^= 1
    (tmp_path / key).chmod(0o600)
    (tmp_path / key).write_bytes(data)
    with pytest.raises(StoreDamagedError, match="is damaged: its checksum does not match"):
        Store.open(tmp_path).points()
    with pytest.raises(StoreDamagedError, match="is damaged: its checksum does not match"):
        Store.open(tmp_path).prune()
