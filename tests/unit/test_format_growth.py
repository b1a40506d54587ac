"""The arithmetic of growth in docs/FORMAT.md: from the lengths of the format, and as a real store grows."""

from __future__ import annotations

import re
from pathlib import Path

from mover.store import Store, pack, page, record, segment
from mover.store.identity import ID_LENGTH
from mover.store.page import FANOUT
from tests.store_fixtures import CHUNK, files_of, point_of

PAGE = (Path(__file__).parents[2] / "docs/FORMAT.md").read_text()
TIB = 1 << 40
PROTECTED = {"1 TiB": TIB, "100 TiB": 100 * TIB, "10 PiB": 10240 * TIB}
RATIO = 0.46
FRAME = record.HEADER_LENGTH + pack.ENTRY_LENGTH
# Prefix and row, and of the fence half a byte to one.
INDEXED = 8 + segment.ROW_LENGTH + 0.5
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "GiB": 1 << 30, "TiB": TIB}


def pages(chunks: int) -> int:
    """Pages of a tree over so many chunks, none of which is zero."""
    level = 0
    found = -(-chunks // FANOUT)
    while chunks > FANOUT ** (level + 1):
        level += 1
        found += -(-chunks // FANOUT ** (level + 1))
    return found


def expected(protected: int) -> dict[str, float]:
    chunks = protected // CHUNK
    whole = page.MAX_LENGTH + FRAME
    return {
        "chunks": chunks,
        "packs of 64 MiB": chunks * (RATIO * CHUNK + FRAME) / (64 << 20),
        "index": (chunks + pages(chunks)) * INDEXED,
        "pages of one full": pages(chunks) * whole,
    }


def test_the_table_says_what_the_lengths_make() -> None:
    assert page.MAX_LENGTH == 4116 and FRAME == 104 and INDEXED == 48.5 and ID_LENGTH == 32
    rows = dict(re.findall(r"^\| (chunks|packs of 64 MiB|index|pages of one full) \| (.+) \|$", PAGE, re.M))
    assert len(rows) == 4
    for name, cells in rows.items():
        for (where, protected), cell in zip(PROTECTED.items(), cells.split(" | "), strict=True):
            number, _, unit = cell.partition(" ")
            told = float(number) * UNITS[unit]
            assert abs(told / expected(protected)[name] - 1) < 0.01, f"{name} of {where}: {cell}"


def test_a_store_grows_by_that(tmp_path: Path) -> None:
    """20,000 chunks that differ, of 64 KiB of which the first bytes are not zero."""
    chunks = 20_000
    store = Store.create(tmp_path)
    with store.writer() as writer:
        tree = writer.tree(chunks * CHUNK)
        for first in range(0, chunks, 64):
            data = b"".join(b"%08d" % number + bytes(CHUNK - 8) for number in range(first, min(first + 64, chunks)))
            tree.put(first, writer.seal(memoryview(data)).ids)
            tree.advance(first)
        root = tree.finish()
        writer.commit(point_of(root, chunks * CHUNK))
    sizes = {file: file.stat().st_size for file in files_of(tmp_path)}
    index = sum(size for file, size in sizes.items() if "index" in file.parts)
    meta = sum(size for file, size in sizes.items() if file.suffix == ".m")
    records = chunks + pages(chunks)
    assert records * INDEXED <= index <= records * (INDEXED + 0.6) + 1000
    # The last page of each level is shorter.
    assert 0.98 * pages(chunks) * (page.MAX_LENGTH + FRAME) <= meta <= pages(chunks) * (page.MAX_LENGTH + FRAME) + 128
    first = memoryview(bytearray(8))
    store.disk(root, chunks * CHUNK).read_into((chunks - 1) * CHUNK, first)
    assert first == b"%08d" % (chunks - 1)
