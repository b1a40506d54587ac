"""Makes the corpus beside it anew: `python -m tests.fuzz.make_corpus`. Small files, good and bad, of each kind.

A name is `<target>-<good|bad>-<what>`. The bad ones are those written by hand for the tests, and damaged ones, one for
each reason the readers gave for refusing several thousand of them.
"""

import gzip
import random
import re
import uuid
from pathlib import Path

import zstandard

from protocol.vhd import VhdWriter
from protocol.xva.ova import MAX_OVA
from tests.fuzz.mutate import packed, variant
from tests.fuzz.targets import TARGETS, outcome
from tests.vhd_fixtures import build
from tests.xva_fixtures import archive, checked, member, ova_xml
from tests.xva_malformed_fixtures import GOOD, MALFORMED

FOLDER = Path(__file__).parent / "corpus"
LARGEST = 12_000
TRIES = 6000


def zstd(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


def zstd_bomb() -> bytes:
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\0\x58" + block * 1000


def good() -> dict[str, dict[str, bytes]]:
    """The seeds, by target and name."""
    alive = archive(
        ova_xml({"Ref:3": 2500}),
        checked("Ref:3/00000000", b"a" * 1000),
        *(checked(f"Ref:3/{n:08}", b"") for n in (1, 2)),
        checked("Ref:3/00000004", b"c" * 500, "sha1"),
    )
    table = b"<value><struct><member><name>Ref:9/00000000</name><value>da39</value></member></struct></value>"
    old = archive(
        ova_xml({"Ref:9": 700}, export_vsn=0), member("Ref:9/00000000", b"z" * 700), member("checksum.xml", table)
    )
    blocks = {n: (bits, bytes([n]) * 4096) for n, bits in enumerate((b"\xff", b"\xa5", b"\x00", b"\x81"))}
    size = 4 * 4096
    ours = VhdWriter(3 << 30, [], unique_id=uuid.UUID(int=1))
    return {
        "xva": {
            "plain": GOOD,
            "alive": alive,
            "old": old,
            "gzip": gzip.compress(GOOD, mtime=0),
            "gzip-two-members": gzip.compress(GOOD[:3000], mtime=0) + gzip.compress(GOOD[3000:], mtime=0),
            "zstd": zstd(alive),
            "zstd-size-known": zstandard.compress(GOOD),
            "no-disks": archive(ova_xml({})),
        },
        "vhd": {
            "plain": build(size, 4096, blocks, [0, 1, 3]),
            "order": build(size, 4096, blocks, [3, 0, 2]),
            "batmap": build(size, 4096, blocks, [1, 2], with_batmap=True),
            "name-behind": build(size, 4096, blocks, [1], name_behind=b"some name"),
            "far-header": build(size - 700, 4096, blocks, [2], header_offset=1024),
            "empty": build(size, 4096, {}, []),
            "ours-empty": ours.head() + ours.trailer(),
        },
        "ova": {"disks": ova_xml({"Ref:1": 1 << 30, "Ref:12": 512}), "none": ova_xml({})},
    }


def bad(target: str, seeds: dict[str, bytes]) -> dict[str, bytes]:
    """Refused ones, by name."""
    made: dict[str, bytes] = {}
    if target == "xva":
        made |= {slug(name): stream for name, (stream, _) in MALFORMED.items() if 0 < len(stream) <= LARGEST}
        made["zstd-bomb"] = zstd_bomb()
        made["gzip-bomb"] = gzip.compress(bytes(4 << 20), mtime=0)
        made["gzip-bomb-in-ova-xml"] = gzip.compress(archive(b" " * MAX_OVA), mtime=0)
    rng = random.Random(1)
    pool = list(seeds.values())
    reasons = set[str]()
    for _ in range(TRIES):
        data = variant(pool, rng)
        data = packed(data, rng) if target == "xva" and rng.random() < 0.2 else data
        error = outcome(TARGETS[target][0], data, []).error
        reason = re.sub(r"b?'.*'|b?\".*\"|<[^>]*>|rek?[a-z]:|[0-9]+", "", error.reason) if error else ""
        if slug(reason) and error and reason not in reasons and 0 < len(data) <= LARGEST:
            reasons.add(reason)
            pool.append(data)
            made.setdefault(f"{slug(error.format)}-{slug(reason)}".removeprefix(f"{target}-"), data)
    return made


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def main() -> None:
    files = {
        f"{target}-{kind}-{name}.bin": data
        for target, seeds in good().items()
        for kind, made in (("good", seeds), ("bad", bad(target, seeds)))
        for name, data in made.items()
    }
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.bin"):
        path.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
