"""Disk images: an ext4 file system of real files of this machine, of text, of noise, and of a database; kept."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import uuid as uuids
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from mover.simulator.guest import make_ext4
from protocol.extent import Extent, merge

MiB = 1 << 20
GRANULE = 64 << 10
_WORDS = "connection closed opened request served from cache backup started retry user query index page".split()


def make_image(work: Path, mib: int) -> Path:
    """An image of `mib` MiB: about half real files, a tenth each text, noise and database, the rest free."""
    image = work / f"image-{mib}.raw"
    if image.exists():
        return image
    tree, unfinished = work / f"tree-{mib}", work / f"image-{mib}.partial"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    try:
        share = mib * MiB // 10
        _copy_files(tree / "files", 5 * share)
        _text(tree / "service.log", share)
        _noise(tree / "video.bin", share)
        _database(tree / "shop.sqlite", share)
        make_ext4(tree, unfinished, mib * MiB, uuids.UUID(int=1))
        unfinished.rename(image)
    finally:
        shutil.rmtree(tree)
    return image


def dirty_extents(size: int, share: float, *, clustered: bool) -> list[Extent]:
    """Granules of 64 KiB, a `share` of all, either anywhere or mostly near each other with gaps between them."""
    rng = random.Random(1)
    granules = size // GRANULE
    wanted = max(1, int(granules * share))
    chosen: set[int] = set()
    while len(chosen) < wanted:
        start = rng.randrange(granules)
        run = range(start, min(start + 64, granules)) if clustered else (start,)
        chosen.update(granule for granule in run if not clustered or rng.random() < 0.4)
    return merge(Extent(granule * GRANULE, GRANULE) for granule in sorted(chosen)[:wanted])


def make_sparse(path: Path, size: int, extents: Sequence[Extent], source: Path) -> None:
    """A sparse file with content only in `extents`: pieces of `source`, none of them twice or all zeros if possible."""
    pieces = _pieces(source)
    with path.open("wb") as file:
        file.truncate(size)
        for number, extent in enumerate(extents):
            for offset in range(extent.offset, extent.end, GRANULE):
                piece = bytearray(next(pieces))
                piece[:16] = number.to_bytes(8, "big") + offset.to_bytes(8, "big")
                file.seek(offset)
                file.write(piece[: extent.end - offset])


def copy_extents(path: Path, extents: Sequence[Extent], source: Path) -> None:
    """A sparse file of the size of `source` that holds what that has in `extents`."""
    with source.open("rb") as whole, path.open("wb") as file:
        file.truncate(source.stat().st_size)
        for extent in extents:
            whole.seek(extent.offset)
            file.seek(extent.offset)
            file.write(whole.read(extent.length))


def _pieces(source: Path) -> Iterator[bytes]:
    while True:
        with source.open("rb") as file:
            while piece := file.read(GRANULE):
                if any(piece):
                    yield piece.ljust(GRANULE, b"\0")


def _copy_files(target: Path, size: int, root: Path = Path("/usr")) -> None:
    """Real files, in an order that depends on their names alone, until there are `size` bytes."""
    paths = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    left = size
    for path in sorted(paths, key=lambda path: blake2b(os.fsencode(path), digest_size=8).digest()):
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > left:
                continue
            copied = target / path.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)
        except OSError:
            continue  # not readable, or gone
        left -= -(-path.stat().st_size // 4096) * 4096
        if left < MiB:
            return


def _text(path: Path, size: int) -> None:
    rng = random.Random(2)
    with path.open("w") as file:
        written = second = 0
        while written < size:
            second += rng.randrange(3)
            line = f"{second:010} host{rng.randrange(20)} {' '.join(rng.choices(_WORDS, k=9))} {rng.randrange(10**6)}\n"
            written += file.write(line)


def _noise(path: Path, size: int) -> None:
    rng = random.Random(3)
    with path.open("wb") as file:
        for _ in range(size // MiB):
            file.write(rng.randbytes(MiB))


def _database(path: Path, size: int) -> None:
    """Tables as a shop would have them, with an index: half-full pages, numbers, names and some random bytes."""
    rng = random.Random(4)
    database = sqlite3.connect(path)
    with database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer, placed, total, note, token)")
        database.execute("CREATE INDEX by_customer ON orders (customer)")
    while path.stat().st_size < size:
        rows = [_order(rng) for _ in range(4_000)]
        with database:
            database.executemany("INSERT INTO orders VALUES (NULL, ?, ?, ?, ?, ?)", rows)
    database.close()


def _order(rng: random.Random) -> tuple[object, ...]:
    note = " ".join(rng.choices(_WORDS, k=12))
    return rng.randrange(10**5), rng.randrange(10**9), rng.random(), note, rng.randbytes(24)
