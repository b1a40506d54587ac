"""The headers of the tar that an XVA is: V7, as ocaml-tar writes them; ustar and GNU ones of short names are read too.

Source: mirage/ocaml-tar lib/tar.ml; POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple, NoReturn

from protocol.errors import FormatError
from protocol.forward import refuse_response

RECORD = 512
END = bytes(2 * RECORD)

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_NUMBER = re.compile(rb" *([0-7]{1,12})[ \0]*")
_PLAIN_NAME = re.compile(rb"[\x20-\x7e]+")
_KINDS = {
    b"x": "a pax header",
    b"g": "a global pax header",
    b"L": "a GNU long name",
    b"K": "a GNU long link",
    b"S": "a GNU sparse file",
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"5": "a folder",
}


class Member(NamedTuple):
    """What a header says. `offset` is where the header stands in the archive, `size` the bytes of the content."""

    name: str
    size: int
    offset: int

    @property
    def padding(self) -> int:
        """Bytes between the content's end and the next header."""
        return -self.size % RECORD


def parse_header(data: bytes, offset: int) -> Member:
    """Parse 512 bytes that stand at `offset` and are not all zero. Raises `FormatError`."""
    refuse_response("XVA", data, offset)
    raw, _, _, _, size, _, checksum, kind, _, magic, _, _, _, _, _, prefix = _HEADER.unpack(data)
    # All bytes, with the checksum's own counted as blanks.
    if _number(checksum, offset) != sum(data) - sum(checksum) + 8 * 0x20:
        fail("no tar header where one should be (its checksum does not match)", offset)
    if kind not in (b"\0", b"0"):
        fail(f"{_KINDS.get(kind, f'a member of type {kind!r}')}; only plain files with short names belong here", offset)
    name = raw.partition(b"\0")[0]
    if magic == b"ustar\0" and prefix[0]:
        name = prefix.partition(b"\0")[0] + b"/" + name
    return Member(_checked(name, offset), _number(size, offset), offset)


def build_header(name: str, size: int, *, mtime: int = 0) -> bytes:
    """The 512 bytes in front of a member of `size` bytes. `mtime` is in seconds since 1970."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) < 100 or not 0 <= size < 1 << 33:
        raise ValueError(f"no member of a tar: {name!r} with {size} bytes")
    front = b"%s0000400\x000000000\x000000000\x00%011o\0%011o\0" % (encoded.ljust(100, b"\0"), size, mtime)
    return b"%s%06o\0 %s" % (front, sum(front) + 8 * 0x20, bytes(RECORD - 156))


def padded(size: int) -> int:
    """The bytes that a content of `size` bytes takes in the archive."""
    return -(-size // RECORD) * RECORD


def fail(reason: str, offset: int) -> NoReturn:
    """Raise the error of a malformed archive."""
    raise FormatError("XVA", reason, offset)


def _number(field: bytes, offset: int) -> int:
    match = _NUMBER.fullmatch(field)
    if not match:
        fail(f"a number in a tar header is {field!r}", offset)
    return int(match[1], 8)


def _checked(raw: bytes, offset: int) -> str:
    """The name, once it is sure that nobody can be led astray with it."""
    if not _PLAIN_NAME.fullmatch(raw):
        fail(f"a member is named {raw!r}", offset)
    name = raw.decode("ascii")
    if name.startswith("/") or "\\" in name:
        fail(f"a member with the absolute name {name!r}", offset)
    if any(part in ("", ".", "..") for part in name.split("/")):
        fail(f"a member with a name that leads elsewhere, {name!r}", offset)
    return name
