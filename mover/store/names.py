"""The names of a store's objects."""

from __future__ import annotations

import re
import secrets
import time
from typing import NamedTuple

STORE = "store.json"
PACKS = "packs/"
INDEX = "index/"
POINTS = "points/"
CONDEMNED = "cond/"
LEASES = "lease/"
TRASH = "trash/"
PROBES = "probe/"
DAMAGE = "damage/"
KEYS = "keys/"
SCRUB = "scrub/"
PARTIAL = "partial/"

DATA = 1
META = 2
MAX_SEQ = (1 << 24) - 1

# Numbers have one spelling: what looks different is somebody else's, and ignored.
_SUFFIX = {DATA: "d", META: "m"}
_PACK = re.compile(r"packs/([0-9a-f]{2})/([0-9a-f]{32})/([0-9a-f]{6})\.([dm])")
_SEGMENT = re.compile(r"index/([0-9])/([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})")
_POINT = re.compile(r"(?:points|trash)/([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})")
_LEASE = re.compile(r"lease/([0-9a-f]{32})(?:\.(0|[1-9][0-9]{0,8}))?")
_DAMAGE = re.compile(r"damage/([0-9a-f]{32})")
_PARTIAL = re.compile(r"partial/([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})")
_CONDEMNED = re.compile(r"cond/([0-9a-f]{32})")


class PackName(NamedTuple):
    """Pack number `seq` of the writer `wid` (16 bytes); `kind` is DATA or META."""

    wid: bytes
    seq: int
    kind: int

    @property
    def key(self) -> str:
        """`packs/<last byte of wid>/<wid>/<seq>.d` or `.m`."""
        wid = self.wid.hex()
        return f"{PACKS}{wid[-2:]}/{wid}/{self.seq:06x}.{_SUFFIX[self.kind]}"


class SegmentName(NamedTuple):
    """Index segment number `number` of the writer `wid`, on merge level `level`."""

    level: int
    wid: bytes
    number: int

    @property
    def key(self) -> str:
        """`index/<level>/<wid>.<number>`."""
        return f"{INDEX}{self.level}/{self.wid.hex()}.{self.number}"


class PointName(NamedTuple):
    """Commit number `number` of the writer `wid`."""

    wid: bytes
    number: int

    @property
    def key(self) -> str:
        """`points/<wid>.<number>`."""
        return f"{POINTS}{self.wid.hex()}.{self.number}"

    @property
    def trash_key(self) -> str:
        """Where it is kept once it is forgotten, until no writer can build on it any more."""
        return f"{TRASH}{self.wid.hex()}.{self.number}"


def parse_pack(key: str) -> PackName | None:
    """The pack a key names, or None."""
    match = _PACK.fullmatch(key)
    if match is None or match[1] != match[2][-2:]:
        return None
    return PackName(bytes.fromhex(match[2]), int(match[3], 16), DATA if match[4] == "d" else META)


def parse_segment(key: str) -> SegmentName | None:
    """The segment a key names, or None."""
    match = _SEGMENT.fullmatch(key)
    return None if match is None else SegmentName(int(match[1]), bytes.fromhex(match[2]), int(match[3]))


def parse_point(key: str) -> PointName | None:
    """The restore point, forgotten or not, that a key names, or None."""
    match = _POINT.fullmatch(key)
    return None if match is None else PointName(bytes.fromhex(match[1]), int(match[2]))


def lease_key(wid: bytes, renewal: int | None = None) -> str:
    """`lease/<wid>`, and of its renewals `lease/<wid>.<renewal>`."""
    return f"{LEASES}{wid.hex()}" if renewal is None else f"{LEASES}{wid.hex()}.{renewal}"


def parse_lease(key: str) -> tuple[bytes, int | None] | None:
    """The writer and the renewal that a key names, or None."""
    match = _LEASE.fullmatch(key)
    return None if match is None else (bytes.fromhex(match[1]), None if match[2] is None else int(match[2]))


def condemned_key(prune: bytes) -> str:
    """`cond/<prune>`: the packs that a prune is about to delete."""
    return f"{CONDEMNED}{prune.hex()}"


def parse_condemned(key: str) -> bytes | None:
    """The prune that a key of condemned packs names, or None."""
    match = _CONDEMNED.fullmatch(key)
    return None if match is None else bytes.fromhex(match[1])


def damage_key(wid: bytes) -> str:
    """`damage/<wid>`: which trees lack something, by the repair `wid`."""
    return f"{DAMAGE}{wid.hex()}"


def parse_damage(key: str) -> bytes | None:
    """The repair that a key of lost trees names, or None."""
    match = _DAMAGE.fullmatch(key)
    return None if match is None else bytes.fromhex(match[1])


class PartialName(NamedTuple):
    """Note number `number` of the writer `wid` on how far it is."""

    wid: bytes
    number: int

    @property
    def key(self) -> str:
        """`partial/<wid>.<number>`."""
        return f"{PARTIAL}{self.wid.hex()}.{self.number}"


def parse_partial(key: str) -> PartialName | None:
    """The note on how far a writer is that a key names, or None."""
    match = _PARTIAL.fullmatch(key)
    return None if match is None else PartialName(bytes.fromhex(match[1]), int(match[2]))


def new_writer_id() -> bytes:
    """16 bytes: 48 bits of Unix milliseconds, so that names sort by age, and 80 random bits. No safety rests on it."""
    milliseconds = int(time.time() * 1000) & ((1 << 48) - 1)
    return milliseconds.to_bytes(6, "big") + secrets.token_bytes(10)
