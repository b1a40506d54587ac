"""Who a piece of data is: keyed BLAKE3, with a key of its own for each kind of thing.

A guest chooses what is in its chunks, so a chunk must never pass for a page of a tree: they are hashed under different
keys, derived from the store's. In a plain store that key is public; it separates stores from each other. In an
encrypted store it is secret: then ids tell nothing, and checksums can be made by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from mover.store.cipher import AesGcm, Cipher, Plain

ID_LENGTH = 32
ZERO_ID = bytes(ID_LENGTH)


@dataclass(frozen=True)
class Identity:
    """The derived keys of one store, 32 bytes each, and how what has an id or a checksum is sealed."""

    chunk: bytes = field(repr=False)
    page: bytes = field(repr=False)
    blob: bytes = field(repr=False)
    check: bytes = field(repr=False)
    cipher: Cipher

    @classmethod
    def of(cls, store_key: bytes, *, encrypted: bool) -> Identity:
        """Derive all from the store's key."""
        chunk, page, blob, check = (_derive(store_key, name) for name in ("chunk", "page", "blob", "check"))
        cipher = AesGcm(_derive(store_key, "record"), _derive(store_key, "object")) if encrypted else Plain()
        return cls(chunk, page, blob, check, cipher)

    def chunk_id(self, data: bytes | memoryview) -> bytes:
        """The id of a chunk's plain bytes."""
        return blake3(data, key=self.chunk).digest()

    def page_id(self, data: bytes | memoryview) -> bytes:
        """The id of an encoded page."""
        return blake3(data, key=self.page).digest()

    def blob_id(self, data: bytes | memoryview) -> bytes:
        """The id of a blob."""
        return blake3(data, key=self.blob).digest()

    def checksum(self, *parts: bytes | memoryview) -> bytes:
        """What guards tables and records that have no id."""
        hasher = self.checker()
        for part in parts:
            hasher.update(part)
        return hasher.digest()

    def checker(self) -> blake3:
        """A checksum in the making: `update` it, and take its `digest`."""
        return blake3(key=self.check)


def _derive(store_key: bytes, name: str) -> bytes:
    return blake3(store_key, derive_key_context=f"mover store 1 {name}").digest()
