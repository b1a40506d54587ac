"""Changed block tracking: the bitmap of `VDI.list_changed_blocks`, and the extents it stands for.

One bit for each 64 KiB of the disk, most significant bit first, in base64 (sm drivers/cbtutil.py and VDI.py). The
bitmap may be longer than the disk; the padding means nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from protocol.errors import FormatError
from protocol.extent import Extent

GRANULE = 64 << 10
_FORMAT = "CBT bitmap"
_ROW = 64  # bytes of bitmap that are looked at together, or passed over because nothing starts or ends in them
_STEP = 2048  # so many extents are made at once when all are asked for in turn
_PIECE = 64 << 10  # bytes of bitmap, a power of two of them, that are taken apart at once into a byte for each bit
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1, dtype=np.uint8)


def decode(text: str | bytes) -> bytes:
    """The bitmap in the base64 text the server sent. White space in it is ignored.

    Raises `FormatError`.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise FormatError(_FORMAT, f"not base64: {error}") from None


def encode(bitmap: bytes) -> str:
    """The base64 text of a bitmap."""
    return base64.b64encode(bitmap).decode("ascii")


class Runs(Sequence[Extent]):
    """The runs of ones in a bitmap with a bit for each `unit` bytes of a disk of `size` bytes, as extents.

    A list of them takes more memory than there is where small parts of a large disk have changed all over it: this
    takes two or three MiB for each TiB of disk, however many there are, and makes them whenever they are asked for.
    """

    def __init__(self, bitmap: npt.NDArray[np.uint8], unit: int, size: int) -> None:
        self._unit = unit
        self._size = size
        # A bit for each place where a run starts or ends; the bit after the last one ends the last run.
        rows = len(bitmap) // _ROW + 1
        edges = np.zeros(rows * _ROW, dtype=np.uint8)
        edges[: len(bitmap)] = bitmap
        edges[: len(bitmap)] ^= bitmap >> 1
        edges[1 : len(bitmap) + 1] ^= bitmap << 7
        self._edges = edges.reshape(rows, _ROW)
        busy = np.flatnonzero(self._edges.view(np.uint64).any(axis=1))
        self._before = np.zeros(rows + 1, dtype=np.int64)  # how many there are in the rows before each
        self._before[busy + 1] = _ONES[self._edges[busy]].sum(axis=1)
        np.cumsum(self._before, out=self._before)
        self._count = int(self._before[-1]) // 2

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Extent]:
        for first in range(0, self._count, _STEP):
            yield from self._make(first, min(first + _STEP, self._count))

    @overload
    def __getitem__(self, index: int) -> Extent: ...
    @overload
    def __getitem__(self, index: slice) -> list[Extent]: ...
    def __getitem__(self, index: int | slice) -> Extent | list[Extent]:
        where = range(self._count)[index]
        if isinstance(where, int):
            return self._make(where, where + 1)[0]
        return self._make(where.start, where.stop) if where.step == 1 else [self[place] for place in where]

    def _make(self, first: int, end: int) -> list[Extent]:
        """The extents from number `first` to before number `end`."""
        if first >= end:
            return []
        low = int(self._before.searchsorted(2 * first, "right")) - 1
        high = int(self._before.searchsorted(2 * end, "left"))
        rows = low + np.flatnonzero(np.diff(self._before[low : high + 1]))
        row, byte = np.nonzero(self._edges[rows])
        which, bit = np.nonzero(np.unpackbits(self._edges[rows[row], byte]).reshape(-1, 8))
        places = ((rows[row] * _ROW + byte) * 8)[which] + bit
        places = places[2 * first - int(self._before[low]) :][: 2 * (end - first)]
        starts = places[::2] * self._unit
        ends = np.minimum(places[1::2] * self._unit, self._size)
        return list(map(Extent, starts.tolist(), (ends - starts).tolist()))


def changed_extents(bitmap: bytes, size_from: int, size_to: int, unit: int = GRANULE) -> Runs:
    """What has to be read of a disk of `size_to` bytes to bring a copy of `size_from` bytes up to date.

    That is what the bitmap names, and everything it cannot vouch for: a last granule that is not whole, what lies past
    the end of a short bitmap, and what was added when the disk grew. It is rounded outwards to multiples of `unit`
    bytes, of granules if those are larger; both are powers of two.

    Raises `FormatError` if the disk shrank: then the bitmap belongs to something else.
    """
    if size_from < 0 or size_to < size_from:
        raise FormatError(_FORMAT, f"it is for a disk of {size_to} bytes, which had {size_from} before")
    granules = -(-size_to // GRANULE)
    whole, rest = divmod(min(len(bitmap) * 8, size_from // GRANULE), 8)
    changed = np.full(-(-granules // 8), 255, dtype=np.uint8)
    changed[:whole] = np.frombuffer(bitmap, dtype=np.uint8, count=whole)
    if rest:
        changed[whole] = bitmap[whole] | 255 >> rest
    if granules % 8:
        changed[-1] &= 255 & ~(255 >> granules % 8)
    factor = max(1, unit // GRANULE)
    return Runs(changed if factor == 1 else _coarser(changed, factor), factor * GRANULE, size_to)


def bitmap_of(extents: Iterable[Extent], size: int) -> bytes:
    """The bitmap of a disk of `size` bytes with a bit set for each granule that `extents` touch."""
    granules = -(-size // GRANULE)
    bits = np.zeros(granules, dtype=np.uint8)
    for extent in extents:
        if extent.length > 0:
            bits[extent.offset // GRANULE : -(-extent.end // GRANULE)] = 1
    return np.packbits(bits).tobytes()


def _coarser(bitmap: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """The bitmap with one bit in place of `factor` bits, a power of two of them: set if any of them is."""
    piece = max(_PIECE, factor)  # so that each makes whole bytes
    made = []
    for start in range(0, len(bitmap), piece):
        part = bitmap[start : start + piece]
        bits = np.unpackbits(part, count=-(-len(part) // factor) * factor * 8)
        for _ in range(factor.bit_length() - 1):
            bits = bits[::2] | bits[1::2]
        made.append(np.packbits(bits))
    return np.concatenate([np.empty(0, dtype=np.uint8), *made])
