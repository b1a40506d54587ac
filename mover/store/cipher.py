"""What an encrypted store does to everything before it leaves this machine, and undoes after it came back.

AES-256-GCM must never see one key with one nonce twice. Records and objects therefore have keys of their own, derived
from the store's and from what names them, and each time something is sealed there is fresh randomness in its key or
nonce: equal names sealed twice, by two writers or after a failure, are as safe as different ones.

What is sealed is bound to its name: a record or object that stands in the place of another one does not open.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mover.store.backend import Buffer, Upload

AES_256_GCM = "aes-256-gcm"
# Objects are sealed in blocks of so many plain bytes, each of which can be opened alone.
BLOCK = 64 << 10
SALT_LENGTH = 24
TAG_LENGTH = 16
_NONCE_LENGTH = 12
# Lengths of compressed chunks tell what they are; this leaves less of them to be seen, for 1 % of room.
_PAD = 512
_END_OF_PAYLOAD = b"\x80"
_HEAD = b"MVSEAL\0\x01"
HEAD_LENGTH = len(_HEAD) + SALT_LENGTH
_META = struct.Struct("<I32s")
_COUNTER = struct.Struct("<QI")


class BadSealError(ValueError):
    """This was not sealed under this name by anybody who has the store's key, or is damaged."""

    def __init__(self) -> None:
        super().__init__("it does not open with the store's key: it was changed, or another one stands in its place")


class Cipher(Protocol):
    """How a store seals what it stores. Any thread may use it."""

    number: int
    """As it stands in the headers of packs."""

    def seal_record(self, id: bytes, meta: int, payload: Buffer) -> Buffer:
        """The payload of the record `id` as it is stored."""

    def open_record(self, id: bytes, meta: int, stored: memoryview) -> memoryview:
        """Undo `seal_record`. Raises `BadSealError`."""

    def seal(self, name: str, data: bytes) -> bytes:
        """The object `name` as it is stored."""

    def open(self, name: str, stored: bytes) -> bytes:
        """Undo `seal`. Raises `BadSealError`."""

    def sealing(self, name: str, upload: Upload) -> Upload:
        """An upload that seals the object `name`, which is too long for `seal`, on its way to `upload`."""


class Plain:
    """A store that is not encrypted."""

    number = 0

    def seal_record(self, id: bytes, meta: int, payload: Buffer) -> Buffer:
        """As it is."""
        return payload

    def open_record(self, id: bytes, meta: int, stored: memoryview) -> memoryview:
        """As it is."""
        return stored

    def seal(self, name: str, data: bytes) -> bytes:
        """As it is."""
        return data

    def open(self, name: str, stored: bytes) -> bytes:
        """As it is."""
        return stored

    def sealing(self, name: str, upload: Upload) -> Upload:
        """As it is."""
        return upload


class AesGcm:
    """AES-256-GCM under keys derived from `record_key` and `object_key`, 32 bytes each."""

    number = 1

    def __init__(self, record_key: bytes, object_key: bytes) -> None:
        self._record_key = record_key
        self._object_key = object_key

    def seal_record(self, id: bytes, meta: int, payload: Buffer) -> bytes:
        """Nonce, encrypted payload with padding, tag.

        The key is the id's. One id is one content, sealed once for each time that writers did not know of each other,
        so the random nonces of a key are few.
        """
        nonce = os.urandom(_NONCE_LENGTH)
        padded = b"".join((payload, _END_OF_PAYLOAD, bytes(-(len(payload) + 1) % _PAD)))
        return nonce + self._of_record(id).encrypt(nonce, padded, _META.pack(meta, id))

    def open_record(self, id: bytes, meta: int, stored: memoryview) -> memoryview:
        """Check and decrypt; what is returned is memory of its own."""
        if len(stored) < _NONCE_LENGTH + TAG_LENGTH + _PAD:
            raise BadSealError
        nonce, sealed = bytes(stored[:_NONCE_LENGTH]), stored[_NONCE_LENGTH:]
        try:
            padded = self._of_record(id).decrypt(nonce, sealed, _META.pack(meta, id))
        except InvalidTag as error:
            raise BadSealError from error
        return memoryview(padded)[: padded.rindex(_END_OF_PAYLOAD, len(padded) - _PAD)]

    def seal(self, name: str, data: bytes) -> bytes:
        """Head, salt, and the blocks with a tag each."""
        salt = os.urandom(SALT_LENGTH)
        key = self.of_object(name, salt)
        starts = range(0, max(len(data), 1), BLOCK)
        blocks = (key.seal(start // BLOCK, data[start : start + BLOCK], last=start == starts[-1]) for start in starts)
        return b"".join([_HEAD, salt, *blocks])

    def open(self, name: str, stored: bytes) -> bytes:
        """Check and decrypt every block."""
        if len(stored) < HEAD_LENGTH + TAG_LENGTH:
            raise BadSealError
        key = self.of_head(name, stored[:HEAD_LENGTH])
        starts = range(HEAD_LENGTH, len(stored), BLOCK + TAG_LENGTH)
        return b"".join(
            key.open(number, stored[start : start + starts.step], last=start == starts[-1])
            for number, start in enumerate(starts)
        )

    def sealing(self, name: str, upload: Upload) -> Upload:
        """Seal block by block."""
        salt = os.urandom(SALT_LENGTH)
        return _SealedUpload(upload, self.of_object(name, salt), _HEAD + salt)

    def of_head(self, name: str, head: bytes) -> ObjectKey:
        """The key of an object that begins with `head`. Raises `BadSealError`."""
        if len(head) != HEAD_LENGTH or head[: len(_HEAD)] != _HEAD:
            raise BadSealError
        return self.of_object(name, head[len(_HEAD) :])

    def of_object(self, name: str, salt: bytes) -> ObjectKey:
        """The key of the object `name`. The salt is random, so that no key seals two objects."""
        encoded = name.encode()
        return ObjectKey(AESGCM(blake3(salt + encoded, key=self._object_key).digest()), encoded)

    def _of_record(self, id: bytes) -> AESGCM:
        return AESGCM(blake3(id, key=self._record_key).digest())


class ObjectKey:
    """Seals the blocks of one object. The nonce counts them, and says which one is the last."""

    def __init__(self, key: AESGCM, name: bytes) -> None:
        self._key = key
        self._name = name

    def seal(self, number: int, block: Buffer, *, last: bool) -> bytes:
        """Block `number`, encrypted, with its tag."""
        return self._key.encrypt(_COUNTER.pack(number, last), block, self._name)

    def open(self, number: int, block: Buffer, *, last: bool) -> bytes:
        """Undo `seal`. Raises `BadSealError`."""
        if len(block) < TAG_LENGTH:
            raise BadSealError
        try:
            return self._key.decrypt(_COUNTER.pack(number, last), block, self._name)
        except InvalidTag as error:
            raise BadSealError from error

    def open_into(self, number: int, block: Buffer, into: memoryview, *, last: bool) -> None:
        """Like `open`, into memory of exactly the length of what was sealed."""
        if len(block) != len(into) + TAG_LENGTH:
            raise BadSealError
        try:
            self._key.decrypt_into(_COUNTER.pack(number, last), block, self._name, into)
        except InvalidTag as error:
            raise BadSealError from error


class _SealedUpload:
    """Gathers blocks and passes them on sealed. One block is held back: only at the end is it known to be the last."""

    def __init__(self, upload: Upload, key: ObjectKey, head: bytes) -> None:
        self._upload = upload
        self._key = key
        self._head = head
        self._waiting = bytearray()
        self._number = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append `buffers` in order."""
        for buffer in buffers:
            self._waiting += buffer
        ready = max((len(self._waiting) - 1) // BLOCK, 0) * BLOCK
        self._pass_on([self._waiting[start : start + BLOCK] for start in range(0, ready, BLOCK)], last=False)
        del self._waiting[:ready]

    def commit(self) -> bool:
        """Seal the last block, and make the object durable."""
        self._pass_on([self._waiting], last=True)
        return self._upload.commit()

    def abort(self) -> None:
        """Forget what was written."""
        self._upload.abort()

    def _pass_on(self, blocks: Sequence[bytearray], *, last: bool) -> None:
        if not blocks:
            return
        sealed = [self._key.seal(number, block, last=last) for number, block in enumerate(blocks, self._number)]
        self._number += len(blocks)
        self._upload.write([self._head, *sealed])
        self._head = b""
