"""XVAs: what is written is read back, by us and by the rules of a server; how the stream is cut makes no difference."""

import io
import random
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.extent import Extent
from protocol.xva.check import Kind, digest_of
from protocol.xva.reader import BLOCK, BlockEnd, Data, XvaReader
from protocol.xva.writer import XvaDisk, XvaWriter
from tests.xva_fixtures import archive as by_hand
from tests.xva_fixtures import checked, disks_in, events, ova_xml


def written(contents: dict[str, bytes], numbers: dict[str, list[int]], kind: Kind = "xxhash") -> tuple[bytes, int]:
    ova = ova_xml({ref: len(content) for ref, content in contents.items()})
    disks = [XvaDisk(ref, len(content), numbers[ref]) for ref, content in contents.items()]
    writer = XvaWriter(ova, disks, checksum=kind)
    parts = [writer.head()]
    for disk in writer.disks:
        for number, offset, length in writer.disk_blocks(disk):
            data = contents[disk.ref][offset : offset + length]
            parts += [writer.block_head(disk.ref, number, length), data, writer.block_padding(length)]
            parts.append(writer.block_tail(disk.ref, number, digest_of(kind, data)))
    return b"".join([*parts, writer.trailer()]), writer.length


def imported(stream: bytes, sizes: dict[str, int]) -> dict[str, bytes]:
    """The disks as a server finds them, by its own rules, and with Python's tarfile: nothing of our reader is in this.

    It goes from disk to disk as ova.xml names them, in the order of their ids; and it tells the length of a gap by the
    first block of all. Source: xen-api ocaml/xapi/stream_vdi.ml.
    """
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r|") as tar:  # forwards only, as from a socket
        return import_members(tar, sizes)


def import_members(tar: tarfile.TarFile, sizes: dict[str, int]) -> dict[str, bytes]:
    members = iter(tar)

    def following() -> tuple[str, bytes]:
        member = next(members)
        file = tar.extractfile(member)
        assert file is not None
        return member.name, file.read()

    assert following()[0] == "ova.xml"
    unit = 0
    disks = {}
    for ref in sorted(sizes):
        content = b""
        last = -1
        while len(content) < sizes[ref]:
            name, data = following()
            unit = unit or len(data)
            assert name.startswith(f"{ref}/")
            number = int(name.removeprefix(f"{ref}/"))
            assert number > last
            content += bytes((number - last - 1) * unit) + data
            digest_name, digest = following()
            assert digest_name in (f"{name}.xxhash", f"{name}.checksum")
            kind: Kind = "xxhash" if digest_name.endswith(".xxhash") else "sha1"
            expected = digest_of(kind, data).hex()
            assert digest.decode() == (expected.upper() if kind == "xxhash" else expected)
            last = number
        disks[ref] = content
    assert next(members, None) is None
    return disks


sizes = st.one_of(st.integers(1, 3 * BLOCK + 1000), st.sampled_from([512, BLOCK - 512, BLOCK, BLOCK + 512, 4 * BLOCK]))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.integers(0, 300), sizes, max_size=4),
    st.sampled_from(["xxhash", "sha1"]),
    st.sampled_from([511, 4096, 70_001, BLOCK, 1 << 24]),
    st.integers(0, 1000),
)
def test_round_trip(disks, kind, piece, seed):
    rng = random.Random(seed)
    contents, numbers = {}, {}
    for ref, size in disks.items():
        content = bytearray(size)
        dirty = [number for number in range(-(-size // BLOCK)) if rng.random() < 0.5]
        for number in dirty:
            content[number * BLOCK : (number + 1) * BLOCK] = rng.randbytes(min(BLOCK, size - number * BLOCK))
        contents[f"Ref:{ref}"], numbers[f"Ref:{ref}"] = bytes(content), dirty
    stream, length = written(contents, numbers, kind)
    assert len(stream) == length
    assert disks_in(stream, piece) == contents
    assert imported(stream, {ref: len(content) for ref, content in contents.items()}) == contents


def test_blocks_of_zeros_are_left_out_but_for_the_first_and_the_last():
    stream, length = written({"Ref:1": bytes(90 * BLOCK)}, {"Ref:1": []})
    assert len(stream) == length < 3 * BLOCK
    assert disks_in(stream) == {"Ref:1": bytes(90 * BLOCK)}


def test_if_the_first_disk_is_shorter_than_a_block_there_are_no_gaps():
    """Servers multiply gaps with the length of the first block they saw, whichever disk it was of."""
    contents = {"Ref:1": bytes(1000), "Ref:2": bytes(4 * BLOCK)}
    stream, length = written(contents, {"Ref:1": [], "Ref:2": []})
    assert len(stream) == length > 4 * BLOCK
    assert disks_in(stream) == imported(stream, {"Ref:1": 1000, "Ref:2": 4 * BLOCK}) == contents
    contents = {"Ref:3": bytes(1000), "Ref:2": bytes(4 * BLOCK)}
    stream, length = written(contents, {"Ref:3": [], "Ref:2": []})
    assert len(stream) == length < 3 * BLOCK
    assert disks_in(stream) == imported(stream, {"Ref:3": 1000, "Ref:2": 4 * BLOCK}) == contents


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["data", "zeros", "alive"]), max_size=12), st.integers(1, 1024))
def test_keep_alives_take_numbers_but_no_room(steps, unit):
    """An archive as the servers write it, with blocks so small that many fit, against the disk it was made of."""
    rng = random.Random(unit)
    disk = [rng.randbytes(unit)]
    parts = [checked("Ref:7/00000000", disk[0])]
    number = 1
    for step in [*steps, "last"]:
        if step == "alive":
            parts.append(checked(f"Ref:7/{number:08}", b""))
        else:
            disk.append(bytes(unit) if step == "zeros" else rng.randbytes(unit if step == "data" else (unit + 1) // 2))
            if step != "zeros":
                parts.append(checked(f"Ref:7/{number:08}", disk[-1]))
        number += 1
    content = b"".join(disk)
    stream = by_hand(ova_xml({"Ref:7": len(content)}), *parts)
    assert disks_in(stream, 700) == {"Ref:7": content}


SMALL = by_hand(
    ova_xml({"Ref:10": 2500, "Ref:9": 600}),
    *(checked(f"Ref:10/{n:08}", bytes([n]) * size) for n, size in ((0, 1000), (2, 500))),
    checked("Ref:9/00000000", b"z" * 600, "sha1"),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(SMALL)), max_size=20))
def test_how_a_stream_is_cut_makes_no_difference(cuts):
    reader = XvaReader()
    edges = [0, *sorted(cuts), len(SMALL)]
    said = []
    for start, end in pairwise(edges):
        for event in reader.feed(SMALL[start:end]):
            if isinstance(event, Data):
                said += [(event.disk, event.offset + n, byte) for n, byte in enumerate(event.view)]
            else:
                said.append(event)
    reader.finish()
    whole = []
    for event in events(SMALL, len(SMALL)):
        whole += (
            [(event.disk, event.offset + n, byte) for n, byte in enumerate(event.view)]
            if isinstance(event, Data)
            else [event]
        )
    assert said == whole


def test_a_block_names_its_place_and_its_checksum():
    ends = [event for event in events(SMALL) if isinstance(event, BlockEnd)]
    assert [(end.disk, end.offset, end.length, end.name) for end in ends] == [
        ("Ref:10", 0, 1000, "Ref:10/00000000"),
        ("Ref:10", 2000, 500, "Ref:10/00000002"),
        ("Ref:9", 0, 600, "Ref:9/00000000"),
    ]
    assert [end.check.kind for end in ends if end.check] == ["xxhash", "xxhash", "sha1"]
    assert SMALL[ends[0].position :].startswith(b"Ref:10/00000000\0")


def test_bodies_are_not_copied():
    stream, _ = written({"Ref:1": b"x" * BLOCK}, {"Ref:1": [0]})
    views = [event.view for event in XvaReader().feed(stream) if isinstance(event, Data)]
    assert [len(view) for view in views] == [BLOCK]
    assert views[0].obj is stream


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (XvaDisk("Ref:1", 0, []), "1 to"),
        (XvaDisk("Ref:1", 1 << 60, []), "1 to"),
        (XvaDisk("../1", 512, []), "name"),
        (XvaDisk("Ref:1", 3 * BLOCK, [1, 1]), "ascending"),
        (XvaDisk("Ref:1", 3 * BLOCK, [3]), "within"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(disk, why):
    with pytest.raises(ValueError, match=why):
        XvaWriter(b"<value/>", [disk])


def test_extents_and_numbers_agree():
    writer = XvaWriter(b"<value/>", [XvaDisk("Ref:1", 3 * BLOCK + 5, [1])])
    blocks = list(writer.disk_blocks(writer.disks[0]))
    assert [Extent(block.offset, block.length) for block in blocks] == [
        Extent(0, BLOCK),
        Extent(BLOCK, BLOCK),
        Extent(3 * BLOCK, 5),
    ]
