"""The objects of a back end as they were before they were sealed, so that copies of the index can be mapped."""

from __future__ import annotations

from dataclasses import dataclass

from mover.store.backend import Backend
from mover.store.cipher import BLOCK, HEAD_LENGTH, TAG_LENGTH, AesGcm


@dataclass(frozen=True)
class Opened:
    """Ranges of sealed objects of `backend`."""

    backend: Backend
    cipher: AesGcm

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The plain bytes from `offset` on, both multiples of a block; fewer at the end.

        Raises `ObjectMissingError`, `BadSealError`, and what the back end raises.
        """
        assert offset % BLOCK == 0 and length is not None and length % BLOCK == 0
        step = BLOCK + TAG_LENGTH
        first = offset // BLOCK
        opening = self.cipher.of_head(key, self.backend.get(key, 0, HEAD_LENGTH))
        # One byte more tells whether there is more: the last block is sealed as the last one.
        stored = self.backend.get(key, HEAD_LENGTH + first * step, length // BLOCK * step + 1)
        more = len(stored) > length // BLOCK * step
        if not stored and offset:
            return b""
        starts = range(0, max(len(stored) - more, 1), step)
        return b"".join(
            opening.open(number, stored[start : start + step], last=start == starts[-1] and not more)
            for number, start in enumerate(starts, first)
        )
