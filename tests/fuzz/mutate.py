"""Damage: blind, and such that checksums are right again, so that it gets past them."""

import gzip
import random
import re
import struct
from collections.abc import Callable, Sequence

import zstandard

RECORD = 512
INTERESTING = (0, 1, 2, 4, 5, 7, 127, 128, 255, 511, 512, 1024, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
TEXTS = (
    b"HTTP/1.1 500 Internal Error\r\n",
    b"../",
    b"/etc/",
    b"Ref:1/00000000",
    b".xxhash",
    b"<value>",
    b"&#0;",
    b"99999999",
)
VALUES = (
    b"",
    b"-1",
    b"1e9",
    b"Ref:9",
    b"OpaqueRef:NULL",
    b"<array><data/></array>",
    b"<array><data><value>Ref:9</value></data></array>",
    b"<struct/>",
    b"<boolean>1</boolean>",
    b"<double>nan</double>",
    b"<int>0</int>",
    b"<nil/>",
    b"<dateTime.iso8601>20240101T00:00:00Z</dateTime.iso8601>",
    b"9" * 30,
)

Mutation = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut_off(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def lengthen(data: bytearray, rng: random.Random) -> None:
    data += rng.choice([bytes(rng.choice([1, 511, 512, 1024])), rng.choice(TEXTS), data[-RECORD:]])


def number(data: bytearray, rng: random.Random) -> None:
    """A big-endian number where one may be."""
    width = rng.choice([4, 8])
    at = rng.randrange(0, max(1, len(data) - width), 4)
    data[at : at + width] = rng.choice(INTERESTING).to_bytes(width, "big")


def text(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = rng.choice(TEXTS)
    data[at : at + (len(piece) if rng.random() < 0.7 else 0)] = piece


def digits(data: bytearray, rng: random.Random) -> None:
    """Other digits in one of the numbers that are text: sizes, block numbers, the metadata."""
    found = list(re.finditer(rb"[0-9]{1,12}", data))
    if found:
        match = rng.choice(found)
        width = len(match[0])
        data[match.start() : match.end()] = str(rng.choice(INTERESTING)).rjust(width, "0")[-width:].encode()


def records(data: bytearray, rng: random.Random) -> None:
    """Sectors or records of the tar taken out, repeated, or moved."""
    count = len(data) // RECORD
    first = rng.randrange(count + 1) * RECORD
    last = first + rng.choice([1, 1, 2, 3, 5]) * RECORD
    taken = data[first:last]
    if rng.random() < 0.7:
        del data[first:last]
    if rng.random() < 0.7:
        at = rng.randrange(len(data) // RECORD + 1) * RECORD
        data[at:at] = taken


def value(data: bytearray, rng: random.Random) -> None:
    """Another value, or one of another type, in the metadata; in an archive its length is put right."""
    start, end = 0, len(data)
    if data.startswith(b"ova.xml\0") and (size := re.fullmatch(rb"[0-7]{11}", data[124:135])):
        start, end = RECORD, RECORD + int(size[0], 8)
    xml = bytes(data[start:end])
    found = list(re.finditer(rb"<value>([^<]*)</value>", xml))
    if not found:
        return
    match = rng.choice(found)
    xml = xml[: match.start(1)] + rng.choice([*VALUES, rng.choice(found)[1]]) + xml[match.end(1) :]
    if start:
        data[124:136] = b"%011o\0" % len(xml)
        end += -end % RECORD
        xml += bytes(-len(xml) % RECORD)
    data[start:end] = xml


def overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    length = rng.choice([1, 4, 16, 100, 512])
    data[at : at + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])


BLIND: tuple[Mutation, ...] = (flip, cut_off, lengthen, number, text, digits, value, records, overwrite)


def repaired(data: bytes) -> bytes:
    """With the checksums of tar headers, VHD footers and headers right again."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - RECORD + 1, RECORD):
        record = fixed[at : at + RECORD]
        if record.startswith(b"conectix"):
            record[64:68] = bytes(4)
            struct.pack_into(">I", fixed, at + 64, ~sum(record) & 0xFFFFFFFF)
        elif record.startswith(b"cxsparse"):
            record = fixed[at : at + 2 * RECORD]
            record[36:40] = bytes(4)
            struct.pack_into(">I", fixed, at + 36, ~sum(record) & 0xFFFFFFFF)
        elif record.startswith((b"Ref:", b"ova.xml", b"checksum.xml")):
            record[148:156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(record)
    return bytes(fixed)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if damaged:
            rng.choice(BLIND)(damaged, rng)
    return repaired(damaged) if rng.random() < 0.8 else bytes(damaged)


def packed(data: bytes, rng: random.Random) -> bytes:
    """Compressed, and sometimes damaged thereafter."""
    made = gzip.compress(data, 1, mtime=0) if rng.random() < 0.5 else zstandard.compress(data, 1)
    return mutated(made, rng) if rng.random() < 0.5 else made


def variant(pool: Sequence[bytes], rng: random.Random) -> bytes:
    """The next input to try, from what was of interest before."""
    data = rng.choice(pool)
    if rng.random() < 0.05:
        other = rng.choice(pool)
        data = (
            data[: rng.randrange(len(data) + 1) // RECORD * RECORD]
            + other[rng.randrange(len(other) + 1) // RECORD * RECORD :]
        )
    return mutated(data, rng)
