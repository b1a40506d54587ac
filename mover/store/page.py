"""A page: up to 128 ids of chunks or of pages below. The tree of pages over a disk's chunks is its content.

An encoded page is level, 16 bytes of bitmap, and the ids of the positions whose bit is set; the others are zeros. There
is one encoding for one content, so equal content has equal ids.
"""

from __future__ import annotations

from mover.store.identity import ID_LENGTH, ZERO_ID

FANOUT = 128
_MAGIC = b"PG1"
_ALL = b"\xff" * (FANOUT // 8)
_HEAD = 20
MAX_LENGTH = _HEAD + FANOUT * ID_LENGTH
# 128 ^ 9 chunks are more bytes than 64 bits count.
MAX_LEVEL = 8


class BadPageError(Exception):
    """These bytes are no page of this level."""


def encode(level: int, ids: bytes) -> bytes:
    """`ids` are 128 ids joined together; at least one must not be zero."""
    if ZERO_ID not in ids:
        return b"".join([_MAGIC, bytes([level]), _ALL, ids])
    present = bytearray(16)
    kept: list[bytes] = []
    for position in range(FANOUT):
        id = ids[position * ID_LENGTH : (position + 1) * ID_LENGTH]
        if id != ZERO_ID:
            present[position >> 3] |= 1 << (position & 7)
            kept.append(id)
    return b"".join([_MAGIC, bytes([level]), present, *kept])


def decode(level: int, data: bytes | memoryview) -> bytes:
    """The 128 ids joined together. Raises `BadPageError`."""
    if len(data) < _HEAD or data[:3] != _MAGIC or data[3] != level:
        raise BadPageError(f"it is no page of level {level}")
    present = int.from_bytes(data[4:_HEAD], "little")
    if len(data) != _HEAD + present.bit_count() * ID_LENGTH or not present:
        raise BadPageError(f"it has {len(data)} bytes for {present.bit_count()} ids")
    stored = bytes(data[_HEAD:])
    if present == (1 << FANOUT) - 1:
        return stored
    ids = bytearray(FANOUT * ID_LENGTH)
    start = 0
    while present:
        position = (present & -present).bit_length() - 1
        ids[position * ID_LENGTH : (position + 1) * ID_LENGTH] = stored[start : start + ID_LENGTH]
        start += ID_LENGTH
        present &= present - 1
    return bytes(ids)


def root_level(chunks: int) -> int:
    """The level of the root of a disk of this many chunks: the lowest that reaches over all of them."""
    level = 0
    while FANOUT ** (level + 1) < chunks:
        level += 1
    return level
