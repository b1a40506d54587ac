"""A record: one chunk, page or blob as stored in a pack. Header of 56 bytes, then the payload."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import zstandard
from xxhash import xxh3_64_intdigest

from mover.store.backend import Buffer
from mover.store.cipher import BadSealError, Cipher

MAX_RAW = 4 << 20
# A payload may be longer than what is in it: encrypted ones are padded, and have a nonce and a tag.
MAX_STORED = MAX_RAW + 1024
HEADER_LENGTH = 56

CHUNK = 1
PAGE = 2
DELTA = 3  # reserved
BLOB = 4

RAW = 0
ZSTD = 1

# A call for several contents makes a context of its own; for fewer than these it takes longer than it saves.
_TOGETHER = 4

_NOT_SAID = -1  # what zstd answers for a frame that does not say how long its content is

_MAGIC = 0x31434552  # "REC1"
_HEADER = struct.Struct("<IIII32sQ")


class BadRecordError(Exception):
    """What is stored is not this record. The text says how."""


class Record(NamedTuple):
    """A record ready to be written. `meta` is raw length, kind and codec, as in `pack_meta`."""

    id: bytes
    meta: int
    payload: Buffer
    check: int

    @property
    def header(self) -> bytes:
        """The 56 bytes before the payload."""
        return _HEADER.pack(_MAGIC, len(self.payload), self.meta, 0, self.id, self.check)


def pack_meta(raw_length: int, kind: int, codec: int) -> int:
    """Raw length in bits 0-23, kind in 24-27, codec in 28-31."""
    return raw_length | kind << 24 | codec << 28


def unpack_meta(meta: int) -> tuple[int, int, int]:
    """Raw length, kind, codec."""
    return meta & 0xFFFFFF, meta >> 24 & 15, meta >> 28


def seal(
    id: bytes, kind: int, data: bytes | memoryview, compressor: zstandard.ZstdCompressor | None, cipher: Cipher
) -> Record:
    """Make the record of `data`."""
    return _seal(id, kind, data, None if compressor is None else compressor.compress(data), cipher)


def seal_many(
    ids: Sequence[bytes],
    kind: int,
    contents: Sequence[memoryview],
    compressor: zstandard.ZstdCompressor | None,
    cipher: Cipher,
) -> list[Record]:
    """Make the records of several contents.

    They are compressed in one call: with one for each, threads spend more time on waiting for the interpreter's lock
    than on their Python code.
    """
    if compressor is None or len(contents) < _TOGETHER:
        return [seal(id, kind, data, compressor, cipher) for id, data in zip(ids, contents, strict=True)]
    frames = compressor.multi_compress_to_buffer(list(contents), threads=1)
    return [
        _seal(id, kind, data, memoryview(frames[number]), cipher)  # type: ignore[arg-type] # it is a buffer
        for number, (id, data) in enumerate(zip(ids, contents, strict=True))
    ]


def _seal(id: bytes, kind: int, data: Buffer, frame: Buffer | None, cipher: Cipher) -> Record:
    """A frame that saves less than 1/32 is not worth decompressing: stored raw."""
    length = len(data)
    payload, codec = data, RAW
    if frame is not None and len(frame) <= length - (length >> 5):
        payload, codec = frame, ZSTD
    meta = pack_meta(length, kind, codec)
    payload = cipher.seal_record(id, meta, payload)
    return Record(id, meta, payload, xxh3_64_intdigest(payload))


def compressor(level: int, usual: int = 64 << 10) -> zstandard.ZstdCompressor:
    """A context for one thread, at its best with contents of `usual` bytes.

    Length and checksum are in the record, so the frame carries neither.
    """
    # Level 1 looks for matches of seven bytes in long contents, as the zstd command does, and of six in those as short
    # as ours. Seven are faster by some percent, and the output is larger by less than one (bench: `codec`).
    shortest = {"min_match": 7} if level == 1 else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=usual, write_content_size=False, write_checksum=False, **shortest
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def decompressor() -> zstandard.ZstdDecompressor:
    """A context for one thread."""
    return zstandard.ZstdDecompressor()


def payload(stored: memoryview, id: bytes, meta: int) -> memoryview:
    """The payload of `stored` (header and payload, of the length the index gives). Raises `BadRecordError`.

    The checksum is not looked at: whoever decompresses compares the id, which says more.
    """
    if len(stored) < HEADER_LENGTH:
        raise BadRecordError("the pack ends within the record")
    magic, length, found_meta, reserved, found_id, _ = _HEADER.unpack_from(stored)
    if magic != _MAGIC or found_id != id or found_meta != meta or reserved:
        raise BadRecordError("another record stands in its place")
    if HEADER_LENGTH + length != len(stored):
        raise BadRecordError(f"its length is {length} bytes, the index says {len(stored) - HEADER_LENGTH}")
    return stored[HEADER_LENGTH:]


def parse_header(data: bytes) -> tuple[int, int, bytes]:
    """Length of the payload, meta and id. Raises `BadRecordError`."""
    if len(data) < HEADER_LENGTH:
        raise BadRecordError("the pack ends within the record")
    magic, length, meta, reserved, id, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or reserved:
        raise BadRecordError("no record begins here")
    return length, meta, id


def check_sum(stored: memoryview) -> bool:
    """Whether the payload is what its checksum says, as far as 64 bits of XXH3 can tell."""
    return xxh3_64_intdigest(stored[HEADER_LENGTH:]) == stored_check(stored)


def stored_check(stored: memoryview) -> int:
    """The checksum that a record's header has for its payload."""
    check: int = _HEADER.unpack_from(stored)[5]
    return check


def expand(
    id: bytes, stored: memoryview, meta: int, decompressor: zstandard.ZstdDecompressor, cipher: Cipher
) -> bytes | memoryview:
    """The plain bytes of the payload of the record `id`, exactly as long as `meta` says. Raises `BadRecordError`."""
    raw_length, _, codec = unpack_meta(meta)
    if raw_length > MAX_RAW:
        raise BadRecordError(f"it claims {raw_length} bytes")
    try:
        data = cipher.open_record(id, meta, stored)
    except BadSealError as error:
        raise BadRecordError(str(error)) from error
    plain: bytes | memoryview
    if codec == RAW:
        plain = data
    elif codec == ZSTD:
        try:
            # A frame that says how long its content is would be believed, whatever `max_output_size` is.
            if zstandard.frame_content_size(data) != _NOT_SAID:
                raise BadRecordError("its frame states a length, which none of ours does")
            plain = decompressor.decompress(data, max_output_size=raw_length)
        except zstandard.ZstdError as error:
            raise BadRecordError(f"it does not decompress ({error})") from error
    else:
        raise BadRecordError(f"its codec {codec} is unknown")
    if len(plain) != raw_length:
        raise BadRecordError(f"it has {len(plain)} bytes instead of {raw_length}")
    return plain
