"""Archives no server would import: each is refused with the place and the reason, whatever the cut of the stream."""

import tracemalloc

import pytest

from protocol.errors import FormatError
from protocol.xva.reader import BlockEnd, Checksums, Data, DiskEnd, End, XvaReader, verify_block
from tests.xva_fixtures import archive, checked, events, member, ova_xml
from tests.xva_malformed_fixtures import ALIVE, GOOD, MALFORMED, NINE, OVA, TEN


def test_the_good_one_is_taken() -> None:
    said = events(GOOD)
    assert [event.end for event in said if isinstance(event, DiskEnd)] == [2500, 1000]
    assert said[-1] == End(len(GOOD))
    alive = events(archive(OVA, TEN[0], ALIVE, checked("Ref:10/00000003", b"c" * 500), *NINE))
    assert [event for event in alive if isinstance(event, Data)] == [event for event in said if isinstance(event, Data)]


@pytest.mark.parametrize("piece", [1, 512, 1 << 20])
@pytest.mark.parametrize(("stream", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_it_is_refused(stream: bytes, reason: str, piece: int) -> None:
    if piece == 1 and len(stream) > 50_000:
        piece = 77
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            events(stream, piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(stream) + (1 << 20)
    if not ("HTTP" in reason and piece == 1):
        assert reason in str(caught.value)
    assert caught.value.format == "XVA"
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(stream)


def test_each_cut_is_refused() -> None:
    for length in range(0, len(GOOD), 7):
        with pytest.raises(FormatError, match="too early"):
            events(GOOD[:length])


def test_a_wrong_checksum_is_the_callers_to_find() -> None:
    damaged = GOOD.replace(b"a" * 1000, b"a" * 999 + b"b")
    reader = XvaReader()
    block = bytearray()
    with pytest.raises(FormatError, match="xxhash of byte 0 ff"):
        for event in reader.feed(damaged):
            if isinstance(event, Data):
                block += event.view
            elif isinstance(event, BlockEnd):
                verify_block(block, event)
                block.clear()


def test_an_archive_of_old_has_its_checksums_at_the_end() -> None:
    table = b"<value><struct><member><name>Ref:9/00000000</name><value>da39</value></member></struct></value>"
    stream = archive(
        ova_xml({"Ref:9": 1000}, export_vsn=0), member("Ref:9/00000000", b"z" * 1000), member("checksum.xml", table)
    )
    said = events(stream)
    assert [event.check for event in said if isinstance(event, BlockEnd)] == [None]
    assert Checksums({"Ref:9/00000000": "da39"}) in said
    between = archive(ova_xml({"Ref:9": 1000}, export_vsn=1), *NINE, member("checksum.xml", table))
    assert Checksums({"Ref:9/00000000": "da39"}) in events(between)


def test_an_export_of_metadata_has_no_disks() -> None:
    said = events(archive(OVA), disks=False)
    assert said[-1] == End(len(archive(OVA)))
    with pytest.raises(FormatError, match="no disk"):
        events(GOOD, disks=False)
