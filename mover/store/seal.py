"""The hot path: a buffer of chunks in, their ids out, what was not stored yet into packs. One call per buffer.

All heavy steps release the interpreter's lock, so two threads sealing keep two cores busy; what is left per chunk is a
handful of bytecodes, and the index is asked once per buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import local
from typing import NamedTuple

import zstandard
from blake3 import blake3

from mover.store import record as records
from mover.store.identity import ZERO_ID, Identity
from mover.store.record import CHUNK, Record


class Sealed(NamedTuple):
    """What became of some content: ids of its chunks (32 bytes each, joined), and its bytes by fate.

    `zero` + `known` + `new` is their length; `stored` is what the packs have grown by.
    """

    ids: bytes
    zero: int
    known: int
    new: int
    stored: int


# Makes the records of ids.
Make = Callable[[Sequence[bytes]], list[Record]]
# Stores the records of those ids that are not stored yet: returns which, and the bytes that took.
Add = Callable[[Sequence[bytes], Make], tuple[list[bytes], int]]


class Compressors(local):
    """A compressor for each thread that asks; None for a store without compression (`level` None)."""

    def __init__(self, level: int | None, chunk_size: int) -> None:
        self.mine: zstandard.ZstdCompressor | None = None if level is None else records.compressor(level, chunk_size)


class Sealer:
    """Seals chunks of `chunk_size` bytes at zstd `level` (None: stored raw). Any thread may call."""

    def __init__(self, identity: Identity, chunk_size: int, level: int | None, add: Add) -> None:
        self._key = identity.chunk
        self._cipher = identity.cipher
        self._chunk_size = chunk_size
        self._add = add
        self._zeros = bytes(chunk_size)
        self._compressors = Compressors(level, chunk_size)

    def seal(self, views: Sequence[memoryview]) -> Sealed:
        """Seal the consecutive chunks in each of `views`, which may be reused on return. The last one may be short."""
        chunk_size = self._chunk_size
        # Comparing this way round is fast; `chunk == zeros` goes byte by byte and holds the interpreter's lock.
        is_zero = self._zeros.startswith
        key = self._key
        ids: list[bytes] = []
        fresh: dict[bytes, memoryview] = {}
        zero = 0
        for view in views:
            for start in range(0, len(view), chunk_size):
                chunk = view[start : start + chunk_size]
                if is_zero(chunk):
                    zero += len(chunk)
                    ids.append(ZERO_ID)
                else:
                    id = blake3(chunk, key=key).digest()
                    ids.append(id)
                    fresh[id] = chunk
        new = stored = 0
        if fresh:
            compressor, cipher = self._compressors.mine, self._cipher

            def make(ids: Sequence[bytes]) -> list[Record]:
                return records.seal_many(ids, CHUNK, [fresh[id] for id in ids], compressor, cipher)

            written, stored = self._add(list(fresh), make)
            new = sum(len(fresh[id]) for id in written)
        return Sealed(b"".join(ids), zero, sum(map(len, views)) - zero - new, new, stored)
