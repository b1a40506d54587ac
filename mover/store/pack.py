"""The frame around a pack's records: header, footer (a table of the records), trailer. Bytes in, values out."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from mover.store.identity import Identity
from mover.store.names import PackName
from mover.store.record import HEADER_LENGTH as RECORD_HEADER
from mover.store.record import MAX_RAW, MAX_STORED

HEADER_LENGTH = 64
TRAILER_LENGTH = 64
ENTRY_LENGTH = 48
MAX_LENGTH = 1 << 30
MAX_RECORDS = 65535

_MAGIC = b"MVPACK\0\x01"
_END = b"MVPKEND1"
_HEADER = struct.Struct("<8s16sIBBHQ16s")
ENTRY = struct.Struct("<32sIIII")
_TRAILER = struct.Struct("<QII32sQ8s")


class BadPackError(Exception):
    """These bytes are not the pack they should be. The text says how."""


@dataclass(frozen=True)
class Footer:
    """`count` entries of 48 bytes each, checked; `end` is the pack's length in bytes."""

    entries: bytes
    count: int
    start: int
    end: int


def encode_header(name: PackName, created_ms: int, aead: int) -> bytes:
    """The first 64 bytes of a pack."""
    fields = _HEADER.pack(_MAGIC, name.wid, name.seq, name.kind, aead, 0, created_ms, bytes(16))
    return fields + struct.pack("<Q", xxh3_64_intdigest(fields))


def parse_header(data: bytes) -> PackName:
    """The name a pack says it has. Raises `BadPackError`."""
    if len(data) < HEADER_LENGTH:
        raise BadPackError("it is shorter than a header")
    magic, wid, seq, kind, aead, flags, _, reserved = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise BadPackError("it does not begin like a pack")
    if struct.unpack_from("<Q", data, _HEADER.size)[0] != xxh3_64_intdigest(data[: _HEADER.size]):
        raise BadPackError("its header is damaged")
    if aead > 1 or flags or any(reserved):
        raise BadPackError("it is made in a way this version does not know")
    return PackName(wid, seq, kind)


def encode_tail(identity: Identity, header: bytes, entries: bytes, footer_offset: int) -> bytes:
    """Footer and trailer."""
    count = len(entries) // ENTRY_LENGTH
    check = identity.checksum(header, entries)
    return entries + _TRAILER.pack(footer_offset, len(entries), count, check, 0, _END)


def parse_trailer(trailer: bytes, size: int) -> tuple[int, int]:
    """Where the footer of a pack of `size` bytes starts, and its number of entries. Raises `BadPackError`."""
    if len(trailer) < TRAILER_LENGTH or size < HEADER_LENGTH + TRAILER_LENGTH or size > MAX_LENGTH:
        raise BadPackError(f"its length of {size} bytes cannot be")
    offset, length, count, _, flags, magic = _TRAILER.unpack(trailer[-TRAILER_LENGTH:])
    if magic != _END:
        raise BadPackError("its end is missing")
    if count > MAX_RECORDS or length != count * ENTRY_LENGTH or offset + length + TRAILER_LENGTH != size or flags:
        raise BadPackError("its trailer is damaged")
    if offset < HEADER_LENGTH:
        raise BadPackError("its trailer is damaged")
    return offset, count


def parse_footer(identity: Identity, header: bytes, tail: bytes, size: int) -> Footer:
    """Check and take apart `tail`, footer and trailer of a pack of `size` bytes. Raises `BadPackError`."""
    offset, count = parse_trailer(tail, size)
    if len(tail) != size - offset:
        raise BadPackError("its footer is cut off")
    entries = tail[:-TRAILER_LENGTH]
    if identity.checksum(header, entries) != _TRAILER.unpack(tail[-TRAILER_LENGTH:])[3]:
        raise BadPackError("its footer is damaged")
    position = HEADER_LENGTH
    for _, start, length, meta, _ in ENTRY.iter_unpack(entries):
        if start != position or length > MAX_STORED or meta & 0xFFFFFF > MAX_RAW:
            raise BadPackError("its footer does not describe its records")
        position = start + RECORD_HEADER + length
    if position != offset:
        raise BadPackError("its footer does not describe its records")
    return Footer(entries, count, offset, size)
