"""Archives no server would import, by what is wrong with them, and a word of the reason for which we refuse them."""

from protocol.xva.ova import MAX_OVA
from protocol.xva.reader import BLOCK
from tests.xva_fixtures import archive, checked, member, ova_xml

OVA = ova_xml({"Ref:10": 2500, "Ref:9": 1000})
TEN = [checked("Ref:10/00000000", b"a" * 1000), checked("Ref:10/00000002", b"c" * 500)]
NINE = [checked("Ref:9/00000000", b"z" * 1000)]
GOOD = archive(OVA, *TEN, *NINE)
ALIVE = checked("Ref:10/00000001", b"")
WRONG_ALIVE = member("Ref:10/00000001", b"") + member("Ref:10/00000001.xxhash", b"0" * 16)


def raw_header(**fields: bytes) -> bytes:
    """A header whose fields are what they should not be, with a checksum that is right."""
    places = {"name": (0, 100), "size": (124, 12), "kind": (156, 1), "magic": (257, 8), "prefix": (345, 155)}
    header = bytearray(member("Ref:10/00000000", bytes(1))[:512])
    for field, value in fields.items():
        start, length = places[field]
        header[start : start + length] = value.ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


MALFORMED: dict[str, tuple[bytes, str]] = {
    "no ova.xml": (archive(OVA)[512 + len(OVA) + -len(OVA) % 512 :], "ova.xml"),
    "ova.xml later": (b"".join(TEN) + archive(OVA), "begins with"),
    "ova.xml twice": (archive(OVA, *TEN, *NINE, member("ova.xml", OVA)), "no name of a block"),
    "a folder first": (member("Ref:10/", b"", type=b"5") + GOOD, "a folder"),
    "ova.xml absurdly large": (raw_header(name=b"ova.xml", size=b"77777777777\0"), "limit"),
    "ova.xml too large": (raw_header(name=b"ova.xml", size=b"%011o\0" % (MAX_OVA + 1)), "limit"),
    "a member of many gigabytes": (archive(OVA, raw_header(size=b"777777777777")), "limit"),
    "a size in base 256": (archive(OVA, raw_header(size=b"\x80" + b"\xff" * 11)), "number"),
    "a negative size": (archive(OVA, raw_header(size=b"-0000000001\0")), "number"),
    "a block longer than blocks are": (
        archive(ova_xml({"Ref:10": 4 * BLOCK}), checked("Ref:10/00000000", bytes(BLOCK + 512))),
        "limit",
    ),
    "disks out of order": (archive(OVA, *NINE, *TEN), "after disk"),
    "a disk twice": (archive(OVA, *TEN, *TEN, *NINE), "after disk"),
    "a disk nobody knows": (archive(OVA, *TEN, checked("Ref:33/00000000", b"x"), *NINE), "no disk"),
    "a disk missing": (archive(OVA, *TEN), "Ref:9 is missing"),
    "all disks missing": (archive(OVA), "missing"),
    "first block missing": (archive(OVA, TEN[1], *NINE), "first block"),
    "first block empty": (archive(OVA, checked("Ref:10/00000000", b""), ALIVE, TEN[1], *NINE), "first block"),
    "last block missing": (archive(OVA, TEN[0], *NINE), "1000 of the 2500"),
    "last block missing, at the end": (archive(OVA, *TEN, *NINE)[: -1024 - len(NINE[0])] + bytes(1024), "missing"),
    "last block of the last disk missing": (archive(ova_xml({"Ref:10": 2500}), TEN[0]), "1000 of the 2500"),
    "last block too short": (
        archive(OVA, TEN[0], checked("Ref:10/00000002", b"c" * 499), *NINE),
        "not the disk's last",
    ),
    "last block too long": (archive(OVA, TEN[0], checked("Ref:10/00000002", b"c" * 501), *NINE), "2500"),
    "a short block in between": (
        archive(OVA, TEN[0], checked("Ref:10/00000001", b"b" * 999), TEN[1], *NINE),
        "not the disk's last",
    ),
    "blocks out of order": (archive(OVA, TEN[0], TEN[1], checked("Ref:10/00000001", b"b" * 1000), *NINE), "after"),
    "a block twice": (archive(OVA, TEN[0], TEN[0], TEN[1], *NINE), "after block 0"),
    "a block far past the end": (archive(OVA, TEN[0], checked("Ref:10/99999999", b"c" * 500), *NINE), "2500"),
    "a keep-alive past the end": (
        archive(OVA, TEN[0], checked("Ref:10/00000004", b""), TEN[1], *NINE),
        "2500",
    ),
    "a keep-alive at the end": (
        archive(ova_xml({"Ref:10": 3000}), TEN[0], checked("Ref:10/00000003", b"")),
        "3000",
    ),
    "a keep-alive in place of a block": (archive(OVA, TEN[0], ALIVE, ALIVE, TEN[1], *NINE), "after block 1"),
    "a keep-alive's wrong checksum": (archive(OVA, TEN[0], WRONG_ALIVE, TEN[1], *NINE), "empty"),
    "a block without its checksum": (archive(OVA, member("Ref:10/00000000", b"a" * 1000), TEN[1], *NINE), "instead of"),
    "a checksum of another block": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), TEN[1][1024:], TEN[1], *NINE),
        "instead of",
    ),
    "a checksum of another kind": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), member("Ref:10/00000000.md5", b"0" * 32)),
        "instead of",
    ),
    "a checksum alone": (archive(OVA, TEN[0][1536:], *NINE), "no name of a block"),
    "a checksum that is none": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), member("Ref:10/00000000.xxhash", b"z" * 16)),
        "no xxhash",
    ),
    "a checksum with blanks": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), member("Ref:10/00000000.xxhash", b"00 00 00 00 00 0")),
        "no xxhash",
    ),
    "a short checksum": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), member("Ref:10/00000000.checksum", b"0" * 16)),
        "no sha1",
    ),
    "a long checksum": (
        archive(OVA, member("Ref:10/00000000", b"a" * 1000), member("Ref:10/00000000.xxhash", b"0" * (1 << 20))),
        "limit",
    ),
    "a name that climbs": (archive(OVA, member("../00000000", b"x")), "leads elsewhere"),
    "a name that climbs inside": (archive(OVA, member("Ref:10/../../x", b"x")), "leads elsewhere"),
    "an absolute name": (archive(OVA, raw_header(name=b"/etc/passwd")), "absolute"),
    "no name": (archive(OVA, raw_header(name=b"")), "named"),
    "a name with a line feed": (archive(OVA, raw_header(name=b"Ref:10\n/00000000")), "named"),
    "a name that climbs by its prefix": (
        archive(OVA, raw_header(magic=b"ustar\x0000", prefix=b"..", name=b"00000000")),
        "leads elsewhere",
    ),
    "a number of seven digits": (archive(OVA, checked("Ref:10/0000000", b"a" * 1000)), "no name of a block"),
    "a number of nine digits": (archive(OVA, checked("Ref:10/000000000", b"a" * 1000)), "no name of a block"),
    "another file": (archive(OVA, *TEN, *NINE, member("notes", b"hello")), "no name of a block"),
    "a pax header": (archive(OVA, raw_header(kind=b"x")), "pax"),
    "a global pax header": (raw_header(kind=b"g") + GOOD, "pax"),
    "a long name": (archive(OVA, raw_header(kind=b"L", name=b"././@LongLink")), "long name"),
    "a sparse file": (archive(OVA, raw_header(kind=b"S")), "sparse"),
    "a link": (archive(OVA, raw_header(kind=b"2")), "link"),
    "a device": (archive(OVA, raw_header(kind=b"3")), "type"),
    "rubbish instead of a header": (archive(OVA, *TEN, b"\x5a" * 512), "tar header"),
    "a damaged header": (GOOD[:10] + b"X" + GOOD[11:], "checksum"),
    "one record of zeros": (GOOD[:-1024] + bytes(512) + NINE[0], "second"),
    "something after the end": (GOOD + b"\0", "follows"),
    "an archive after the end": (GOOD + GOOD, "follows"),
    "a response after the end": (GOOD + b"HTTP/1.1 500 Internal Error\r\n\r\n", "HTTP response"),
    "a response at the start": (b"HTTP/1.1 500 Internal Error\r\n\r\n<html>" + bytes(900), "HTTP response"),
    "nothing but a response": (b"HTTP/1.1 500 Internal Error\r\n\r\n<html>", "HTTP response"),
    "a response instead of a block": (
        archive(OVA, TEN[0])[:-1024] + b"HTTP/1.1 500 Internal Error\r\ncontent-length: 357\r\n\r\n<html>",
        "HTTP response",
    ),
    "no table in an archive of old": (
        archive(ova_xml({"Ref:9": 1000}, export_vsn=0), member("Ref:9/00000000", b"z" * 1000)),
        "checksum.xml",
    ),
    "a table in a new archive": (
        archive(OVA, *TEN, *NINE, member("checksum.xml", b"<value><struct></struct></value>")),
        "follows the last disk",
    ),
    "a table that is none": (
        archive(
            ova_xml({"Ref:9": 1000}, export_vsn=0),
            member("Ref:9/00000000", b"z" * 1000),
            member("checksum.xml", b"<value>no table</value>"),
        ),
        "no table",
    ),
    "checksums in an archive of old": (archive(ova_xml({"Ref:9": 1000}, export_vsn=0), *NINE), "no name of a block"),
    "a disk of absurd size": (archive(ova_xml({"Ref:9": 1 << 70}), *NINE), "virtual_size"),
    "a disk of negative size": (archive(ova_xml({"Ref:9": -1}), *NINE), "virtual_size"),
    "an empty stream": (b"", "too early"),
}
