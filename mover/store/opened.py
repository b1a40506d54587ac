"""The objects of a back end as they were before they were sealed, so that copies of the index can be mapped."""

from __future__ import annotations

from dataclasses import dataclass

from mover.store.backend import Backend
from mover.store.cipher import BLOCK, HEAD_LENGTH, TAG_LENGTH, AesGcm

_STEP = BLOCK + TAG_LENGTH


@dataclass(frozen=True)
class Opened:
    """Ranges of sealed objects of `backend`."""

    backend: Backend
    cipher: AesGcm

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytearray:
        """The plain bytes from `offset` on, both multiples of a block; fewer at the end.

        Raises `ObjectMissingError`, `BadSealError`, and what the back end raises.
        """
        assert offset % BLOCK == 0 and length is not None and length % BLOCK == 0
        first, count = offset // BLOCK, length // BLOCK
        head, stored = self._read(key, first, count)
        opening = self.cipher.of_head(key, head)
        if first and not stored:
            return bytearray()
        more = len(stored) > count * _STEP
        starts = range(0, max(len(stored) - more, 1), _STEP)
        plain = bytearray(max(len(stored) - more - len(starts) * TAG_LENGTH, 0))
        into = memoryview(plain)
        for at, start in enumerate(starts):
            room = into[at * BLOCK : (at + 1) * BLOCK]
            last = start == starts[-1] and not more
            opening.open_into(first + at, stored[start : start + _STEP], room, last=last)
        return plain

    def _read(self, key: str, first: int, count: int) -> tuple[bytes, memoryview]:
        """The head and some blocks, with one byte more if there is more: the last block is sealed as the last one."""
        length = count * _STEP + 1
        if first:
            head = self.backend.get(key, 0, HEAD_LENGTH)
            return head, memoryview(self.backend.get(key, HEAD_LENGTH + first * _STEP, length))
        data = memoryview(self.backend.get(key, 0, HEAD_LENGTH + length))
        return bytes(data[:HEAD_LENGTH]), data[HEAD_LENGTH:]
