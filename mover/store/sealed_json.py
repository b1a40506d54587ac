"""Records as JSON with a checksum, bound to the name of the object that holds them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mover.store.cipher import BadSealError
from mover.store.identity import ID_LENGTH, Identity

T = TypeVar("T")


def encode(identity: Identity, key: str, record: msgspec.Struct) -> bytes:
    """JSON with sorted keys, then 32 bytes of checksum, sealed as `key`."""
    data = msgspec.json.encode(record, order="sorted")
    return identity.cipher.seal(key, data + identity.checksum(data))


def decode(identity: Identity, key: str, data: bytes, type: type[T]) -> tuple[T, bytes]:
    """The record and its checksum. Raises `ValueError`."""
    try:
        opened = identity.cipher.open(key, data)
    except BadSealError as error:
        raise ValueError(str(error)) from error
    body, check = opened[:-ID_LENGTH], opened[-ID_LENGTH:]
    if identity.checksum(body) != check:
        raise ValueError("its checksum does not match")
    try:
        return msgspec.json.decode(body, type=type), check
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
