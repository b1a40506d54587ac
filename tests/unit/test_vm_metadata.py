"""What is stored of a VM besides its disks: the pool's own form of it fits into one blob, or is left out."""

import random

import msgspec
import pytest
import zstandard

from mover.backup.metadata import VmMetadata, decode, encode, ova_xml_of, with_ova_xml
from mover.store import MAX_RAW
from protocol.errors import FormatError
from protocol.xva.ova import MAX_OVA

BARE = VmMetadata(
    vm={"name_label": "web"}, vbds={}, vdis={}, vifs={}, networks={}, pifs={}, srs={}, vtpms={}, vtpm_contents={},
    software_version={},
)  # fmt: skip


def member(number: int) -> str:
    return f'<member><name>"{number}"</name><value>\n</value></member>'


@pytest.mark.parametrize("length", [0, 1000, MAX_RAW // 2, MAX_RAW, MAX_OVA])
def test_a_description_of_any_length_comes_back(length: int):
    text = "".join(map(member, range(length // 30)))[:length]
    data = encode(with_ova_xml(BARE, text.encode()))
    assert len(data) <= MAX_RAW
    assert ova_xml_of(decode(data)) == text


def test_what_does_not_fit_is_left_out_and_the_records_stay():
    noise = random.Random(1).randbytes(MAX_RAW).hex().encode()
    for ova_xml in (None, noise, bytes(MAX_OVA + 1)):
        kept = with_ova_xml(BARE, ova_xml)
        assert kept is BARE
        assert ova_xml_of(kept) is None


@pytest.mark.parametrize(
    "frame",
    [b"no frame at all", b"", zstandard.compress(bytes(MAX_OVA + 1)), zstandard.compress(b"\xff")],
    ids=["rubbish", "nothing", "too long", "no text"],
)
def test_a_damaged_description_is_an_error(frame: bytes):
    with pytest.raises(FormatError, match="ova_xml_zstd"):
        ova_xml_of(msgspec.structs.replace(BARE, ova_xml_zstd=frame))
