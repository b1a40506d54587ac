"""The format is what docs/FORMAT.md says: a reader written from that page alone finds every byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mover.store import Store
from protocol.secret import Secret
from tests import format_reader
from tests.crypt_fixtures import PASSPHRASE, create
from tests.store_fixtures import CHUNK, back_up, noise, point_of, read_disk, restore, small_packs, text, write_disk


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
