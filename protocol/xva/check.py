"""The checksums of blocks: XXH64 in `.xxhash` members since 8.1, SHA-1 in `.checksum` members before.

They find damage on the way, not attackers. Source: xen-api ocaml/xapi/stream_vdi.ml.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import xxhash

from protocol.forward import Bytes
from protocol.xva.tar import fail

Kind = Literal["xxhash", "sha1"]

EXTENSIONS: dict[Kind, str] = {"xxhash": ".xxhash", "sha1": ".checksum"}
KINDS: dict[str, Kind] = {extension: kind for kind, extension in EXTENSIONS.items()}
# Characters of the member's content.
LENGTHS: dict[Kind, int] = {"xxhash": 16, "sha1": 40}


class Check(NamedTuple):
    """The checksum that an archive states for a block: 8 bytes for xxhash, 20 for sha1."""

    kind: Kind
    digest: bytes

    def matches(self, block: Bytes) -> bool:
        """Whether `block` has this checksum. It takes up to 1 ms for 1 MiB: a worker thread's work."""
        return digest_of(self.kind, block) == self.digest


def digest_of(kind: Kind, block: Bytes) -> bytes:
    """The checksum of a block."""
    return xxhash.xxh64_digest(block) if kind == "xxhash" else hashlib.sha1(block, usedforsecurity=False).digest()


def parse_digest(kind: Kind, text: bytes, offset: int) -> bytes:
    """The content of a checksum member that stands at `offset`. Raises `FormatError`."""
    try:
        digest = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        digest = b""
    if len(text) != LENGTHS[kind] or len(digest) * 2 != len(text):
        fail(f"{text[:50]!r} is no {kind} checksum", offset)
    return digest


def build_digest(kind: Kind, digest: bytes) -> bytes:
    """The content of a checksum member, as the servers write it."""
    return (digest.hex().upper() if kind == "xxhash" else digest.hex()).encode("ascii")
