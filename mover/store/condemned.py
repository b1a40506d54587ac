"""Packs that prunes are about to delete: whoever writes must not count on them.

One object for each prune under way or interrupted: head, 24 bytes for each pack, checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from mover.errors import StoreDamagedError
from mover.store.backend import Backend, ObjectMissingError
from mover.store.identity import ID_LENGTH, Identity
from mover.store.names import CONDEMNED, DATA, META, PackName, parse_condemned

_HEAD = b"MVCOND\0\x01"
# In one object, of 24 bytes each; of more, a prune leaves the others to the next one.
MAX_PACKS = 10_000_000
_MAX_LENGTH = 256 << 20
_PACK = struct.Struct("<16sIB3x")


def encode_condemned(identity: Identity, packs: Iterable[PackName]) -> bytes:
    """The object that condemns `packs`."""
    data = _HEAD + b"".join(_PACK.pack(*pack) for pack in sorted(packs))
    return data + identity.checksum(data)


def decode_condemned(identity: Identity, data: bytes) -> frozenset[PackName]:
    """The packs that an object condemns. Raises `ValueError`."""
    body, check = data[:-ID_LENGTH], data[-ID_LENGTH:]
    if body[: len(_HEAD)] != _HEAD or (len(body) - len(_HEAD)) % _PACK.size or identity.checksum(body) != check:
        raise ValueError("it is not what was written")
    packs = frozenset(PackName(*fields) for fields in _PACK.iter_unpack(body[len(_HEAD) :]))
    if any(pack.kind not in (DATA, META) for pack in packs):
        raise ValueError("it holds what this version does not know")
    return packs


def read_condemned(
    backend: Backend, identity: Identity
) -> tuple[dict[bytes, frozenset[PackName]], list[tuple[str, str]]]:
    """The condemned packs by prune, and the objects that cannot be read with the reason."""
    found: dict[bytes, frozenset[PackName]] = {}
    damaged: list[tuple[str, str]] = []
    for key, size in backend.list(CONDEMNED):
        if (prune := parse_condemned(key)) is None:
            continue
        if size > _MAX_LENGTH:
            damaged.append((key, f"it has {size} bytes"))
            continue
        try:
            found[prune] = decode_condemned(identity, identity.cipher.open(key, backend.get(key, 0, size)))
        except ObjectMissingError:
            # That prune is done: its packs are gone, and whoever looks for them from now on sees that.
            continue
        except ValueError as error:
            damaged.append((key, str(error)))
    return found, damaged


def refuse_damaged_condemnations(location: str, damaged: Iterable[tuple[str, str]]) -> None:
    """Raise `StoreDamagedError` if it cannot be known which packs are condemned: one must not write then."""
    for key, reason in damaged:
        if key.startswith(CONDEMNED):
            raise StoreDamagedError(
                f"{location}/{key} is damaged: {reason}",
                "it names packs that a prune is about to delete; remove it once no prune and no backup is running",
            )
