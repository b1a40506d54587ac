"""The format is what docs/FORMAT.md says: a reader written from that page alone finds every byte."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mover.store import Store
from protocol.secret import Secret
from tests import format_reader
from tests.crypt_fixtures import PASSPHRASE, create
from tests.store_fixtures import (
    CHUNK,
    add_notes,
    back_up,
    files_of,
    noise,
    point_of,
    read_disk,
    restore,
    small_packs,
    text,
    write_disk,
)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("compression", ["zstd:1", "none"])
def test_a_second_reader_restores_every_point(tmp_path: Path, compression: str, encrypted: bool) -> None:
    make = create if encrypted else Store.create
    store = small_packs(make(tmp_path / "store", compression=compression))
    rng = random.Random(1)
    data = bytearray(300 * CHUNK + 12345)
    for chunk in rng.sample(range(301), 60):
        piece = (noise if chunk % 3 else text)(chunk)
        data[chunk * CHUNK : (chunk + 1) * CHUNK] = piece[: len(data) - chunk * CHUNK]
    expected = {}
    with store.writer() as writer:
        root, size = write_disk(writer, bytes(data)), len(data)
        blob = writer.put_blob(b"about the VM" * 1000)
        expected[writer.commit(point_of(root, size, 1, metadata=blob))] = bytes(data)
        data[CHUNK : 2 * CHUNK] = noise("new")
        data += text("grown", 2 * CHUNK) + bytes(1000 * CHUNK)
        changed = [1, 300, 301, 302]
        root = write_disk(writer, bytes(data), changed, base=root, base_size=size)
        expected[writer.commit(point_of(root, len(data), 2, metadata=blob))] = bytes(data)
    expected[back_up(store, b"x" * 10, 3)] = b"x" * 10

    reader = format_reader.Reader(tmp_path / "store", PASSPHRASE.reveal() if encrypted else "")
    assert set(reader.points()) == set(expected)
    for number, (point, content) in enumerate(expected.items()):
        reader.restore(point, "0", tmp_path / f"{number}.raw")
        assert (tmp_path / f"{number}.raw").read_bytes() == content == restore(store, point)
    assert reader.metadata(next(iter(expected))) == b"about the VM" * 1000
    packs = list((tmp_path / "store/packs").glob("*/*/*"))
    assert len(packs) > 3
    assert sum(map(reader.check_pack, packs)) == len(reader.places)


def test_it_runs_alone(tmp_path: Path) -> None:
    point = back_up(Store.create(tmp_path / "store"), noise(1, 3 * CHUNK + 7))
    script = Path(format_reader.__file__)
    command = [sys.executable, "-I", script, tmp_path / "store", point, "0", tmp_path / "out.raw"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "out.raw").read_bytes() == noise(1, 3 * CHUNK + 7)
    imports = [line for line in script.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if "mover" in line or "protocol" in line]
    assert len(script.read_text().splitlines()) <= 300


def test_it_opens_a_store_with_any_of_its_passphrases_and_no_other(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    point = back_up(store, noise(1, 70000))
    store.add_passphrase(Secret("größer"))
    script = Path(format_reader.__file__)
    command = [sys.executable, "-I", script, tmp_path / "store", point, "0", tmp_path / "out.raw"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PASSPHRASE": "größer"})
    assert (tmp_path / "out.raw").read_bytes() == noise(1, 70000)
    for wrong in ("", "grösser"):
        with pytest.raises(format_reader.Wrong, match="no key opens"):
            format_reader.Reader(tmp_path / "store", wrong)


def test_root_names_content_however_it_was_written(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    old, new = noise(1, 200 * CHUNK), bytearray(noise(1, 200 * CHUNK))
    new[150 * CHUNK : 151 * CHUNK] = bytes(CHUNK)
    with store.writer() as writer:
        base = write_disk(writer, old)
        root = write_disk(writer, bytes(new), [150], base=base, base_size=len(old))
        assert root == write_disk(writer, bytes(new)) != base
    assert read_disk(store, root, len(new)) == new


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_a_reader_does_not_need_is_as_the_page_says(tmp_path: Path, encrypted: bool) -> None:
    """Stamps, trash, condemnations, notes and leases, taken apart by what the page says of them."""
    store = (create if encrypted else Store.create)(tmp_path)
    for number in range(2):
        back_up(store, noise(number), number)
    (first, second) = store.points()
    assert list(store.verify(deep=True)) == []
    add_notes(store)
    reader = format_reader.Reader(tmp_path, PASSPHRASE.reveal() if encrypted else "")

    def whole(key: str, name: str = "") -> bytes:
        data = reader.opened(tmp_path / key, name or key)
        assert reader.check(data[:-32]) == data[-32:]
        return data[:-32]

    names: dict[str, list[str]] = {}
    for file in files_of(tmp_path):
        key = str(file.relative_to(tmp_path))
        names.setdefault(key.split("/")[0], []).append(key)
    [about] = [json.loads((tmp_path / key).read_bytes()) for key in names["lease"]]
    assert about.keys() == {"host", "pid", "started", "repair"}
    for key in names["scrub"]:
        assert re.fullmatch(r"scrub/[0-9a-f]{32}\.0\.[1-9][0-9]{9}\.d", key)
        content = reader.opened(tmp_path / key, key)
        id = next(p.id for p in (first, second) if p.name.key == "points/" + ".".join(key[6:].split(".")[:2]))
        assert content == id.encode() + reader.check(key.encode() + id.encode())
    (forgotten,) = names["trash"]
    assert forgotten == "trash/" + first.name.key.removeprefix("points/")
    assert json.loads(whole(forgotten, first.name.key))["created"] == 0
    (condemned,) = names["cond"]
    assert whole(condemned) == b"MVCOND\0\1" + bytes(16) + b"\7\0\0\0" + b"\1" + bytes(3)
    (lost,) = names["damage"]
    assert whole(lost) == b"MVLOST\0\1" + bytes(range(32))
    (note,) = names["partial"]
    about = json.loads(whole(note))
    (vm,) = about.pop("vms")
    (disk,) = vm.pop("disks")
    assert (about, vm) == (
        {"format": 1, "job": "j", "run": "r"},
        {"vm_uuid": "u", "snapshot_uuid": "s", "created": 1.0},
    )
    ((level, number, id),) = disk.pop("pages")
    assert (level, number, base64.b64decode(id)) == (0, 0, bytes(range(32)))
    assert disk == {"vdi_uuid": "v", "snapshot_uuid": "s", "size": CHUNK, "done": CHUNK}
    assert {"cond", "damage", "index", "lease", "packs", "partial", "points", "scrub", "store.json", "trash"} == (
        names.keys() - {"keys"}
    )
