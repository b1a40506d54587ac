"""What an incremental writes beside the changed content: a tenth of it at most, however scattered it is."""

import random
from pathlib import Path

from mover.store import Store, page
from mover.store.page import FANOUT
from mover.store.pages import NO_IDS
from tests.store_fixtures import CHUNK, files_of, point_of, text

SIZE = 1 << 40
GRANULES = 10_000


def test_ten_thousand_granules_scattered_over_a_tebibyte(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    chosen = sorted(random.Random(1).sample(range(SIZE // CHUNK), GRANULES))
    with store.writer() as writer:
        # A base that is full, so that every page that is touched is a whole one. All of a level are alike: each is
        # made once, as putting sixteen million ids would take half a minute to do.
        root = writer.seal(memoryview(text("base"))).ids
        chunks = SIZE // CHUNK
        for level in range(page.root_level(chunks) + 1):
            children = min(-(-chunks // FANOUT**level), FANOUT)
            (root,) = writer._write_pages([page.encode(level, (root * children).ljust(len(NO_IDS), b"\0"))])
        writer.commit(point_of(root, SIZE))
    before = {path: path.stat().st_size for path in files_of(tmp_path)}
    with store.writer() as writer:
        tree = writer.tree(SIZE, base=root, base_size=SIZE)
        for number, chunk in enumerate(chosen):
            tree.put(chunk, writer.seal(memoryview(text(number))).ids)
        writer.commit(point_of(tree.finish(), SIZE, 1.0))
    new = {path: path.stat().st_size for path in files_of(tmp_path) if path not in before}
    beside = sum(size for path, size in new.items() if path.suffix != ".d")
    assert sum(size for path, size in new.items() if path.suffix == ".d")
    assert beside <= 0.1 * GRANULES * CHUNK
    print(f"{beside} bytes beside {GRANULES * CHUNK} that changed: {beside / GRANULES / CHUNK:.1%}")
