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
    body, check = unseal(identity, key, data)
    return parse(body, type), check


def unseal(identity: Identity, key: str, data: bytes) -> tuple[bytes, bytes]:
    """The JSON and its checksum, which is right. Raises `ValueError`."""
    try:
        opened = identity.cipher.open(key, data)
    except BadSealError as error:
        raise ValueError(str(error)) from error
    body, check = opened[:-ID_LENGTH], opened[-ID_LENGTH:]
    if identity.checksum(body) != check:
        raise ValueError("its checksum does not match")
    return body, check


def parse(body: bytes, type: type[T]) -> T:
    """Read the JSON. Raises `ValueError`."""
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        # Fields that are ignored are gone through, too.
        raise ValueError("it is nested too deeply") from error
