"""`store.json`: what was decided when the store was made."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from blake3 import blake3

from mover.errors import FormatTooNewError, StoreDamagedError
from mover.store.cipher import AES_256_GCM
from mover.store.page import FANOUT

VERSION = 1
MIN_CHUNK = 64 << 10
MAX_CHUNK = 4 << 20
PACK_TARGET = 64 << 20
MAX_LENGTH = 64 << 10
_FORMAT = "mover-store"


@dataclass(frozen=True)
class Features:
    """Additions that a program must know to write or prune, and this one does not."""

    write: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """`key` (32 bytes) is what all ids and checksums are derived from; `level` is zstd's, None for no compression.

    Of an encrypted store the key is not in `store.json`: it is empty until it is unlocked, by the key `slot`.
    """

    store_id: str
    chunk_size: int
    key: bytes = field(repr=False)
    level: int | None
    pack_target: int = PACK_TARGET
    encrypted: bool = False
    slot: str = ""
    unknown: Features = Features()

    def require(self, location: str, doing: Literal["write", "prune"]) -> None:
        """That this program knows what it takes; who prunes writes as well. Raises `FormatTooNewError`."""
        _refuse_unknown(location, doing, self.unknown.write)
        if doing == "prune":
            _refuse_unknown(location, doing, self.unknown.prune)


def new_config(chunk_size: int, compression: str, *, encrypted: bool = False) -> Config:
    """The configuration of a new store. Raises `ValueError`."""
    _check_chunk_size(chunk_size)
    level = parse_compression(compression)
    return Config(secrets.token_hex(16), chunk_size, secrets.token_bytes(32), level, encrypted=encrypted)


def encode(config: Config) -> bytes:
    """Canonical JSON, with a checksum over itself."""
    fields: dict[str, Any] = {
        "aead": AES_256_GCM if config.encrypted else "none",
        "chunk_size": config.chunk_size,
        "compression": "none" if config.level is None else f"zstd:{config.level}",
        "created": int(time.time()),
        "fanout": FANOUT,
        "features": {"prune": [], "read": [], "write": []},
        "format": _FORMAT,
        "hash": "blake3",
        "key": "" if config.encrypted else config.key.hex(),
        "pack_target": config.pack_target,
        "store_id": config.store_id,
        "version": VERSION,
    }
    return _canonical({**fields, "check": _check(fields)})


def decode(location: str, data: bytes) -> Config:
    """Read and check it. Raises `StoreDamagedError`, `FormatTooNewError`."""
    if len(data) > MAX_LENGTH:
        raise _damaged(location, f"it has {len(data)} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(location, "it is no JSON") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise _damaged(location, "it is not the description of a mover store")
    if _canonical(fields) != data or fields.pop("check", None) != _check(fields):
        raise _damaged(location, "its checksum does not match")
    version, features = fields.get("version"), fields.get("features")
    if version != VERSION:
        raise FormatTooNewError(
            f"{location} has format version {version}, this program knows {VERSION}", "use a newer mover"
        )
    if not isinstance(features, dict) or not features.keys() <= {"read", "write", "prune"}:
        raise FormatTooNewError(f"{location} has features of a kind this program does not know", "use a newer mover")
    needed = {kind: _names(features.get(kind, [])) for kind in ("read", "write", "prune")}
    _refuse_unknown(location, "read", needed["read"])
    if (
        fields.get("aead") not in ("none", AES_256_GCM)
        or fields.get("hash") != "blake3"
        or fields.get("fanout") != FANOUT
    ):
        raise FormatTooNewError(f"{location} uses a format this program does not know", "use a newer mover")
    try:
        return replace(_config(fields), unknown=Features(needed["write"], needed["prune"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(location, str(error)) from error


def _config(fields: dict[str, Any]) -> Config:
    chunk_size, target = fields["chunk_size"], fields["pack_target"]
    if not isinstance(chunk_size, int) or not isinstance(target, int):
        raise TypeError("sizes are whole numbers")
    _check_chunk_size(chunk_size)
    if not 1 << 16 <= target <= 1 << 29:
        raise ValueError("pack_target is out of range")
    key = bytes.fromhex(fields["key"])
    encrypted = fields["aead"] != "none"
    if len(key) != (0 if encrypted else 32) or not re.fullmatch("[0-9a-f]{32}", fields["store_id"]):
        raise ValueError("key or store_id has the wrong length")
    return Config(fields["store_id"], chunk_size, key, parse_compression(fields["compression"]), target, encrypted)


def parse_compression(text: str) -> int | None:
    """The level in "zstd:1" (1 to 19); None for "none". Raises `ValueError`."""
    if text == "none":
        return None
    match = re.fullmatch(r"zstd:(\d{1,2})", text)
    if match is None or not 1 <= int(match[1]) <= 19:
        raise ValueError(f'compression is "none" or "zstd:1" to "zstd:19", not "{text}"')
    return int(match[1])


def _check_chunk_size(size: int) -> None:
    if not MIN_CHUNK <= size <= MAX_CHUNK or size & (size - 1):
        raise ValueError(f"the chunk size is a power of two from {MIN_CHUNK} to {MAX_CHUNK}, not {size}")


def _names(found: object) -> tuple[str, ...]:
    """The names of features; whatever else stands there is one that nobody knows."""
    return tuple(map(str, found)) if isinstance(found, list) else (str(found),)


def _refuse_unknown(location: str, doing: str, features: tuple[str, ...]) -> None:
    if features:
        raise FormatTooNewError(
            f"{location} uses {', '.join(features)}, which this program does not know: it cannot {doing} it",
            "use a newer mover",
        )


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _check(fields: dict[str, Any]) -> str:
    return blake3(_canonical(fields)).hexdigest()


def _damaged(location: str, reason: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{location}/store.json is damaged: {reason}", "restore this file from a copy of the store"
    )
