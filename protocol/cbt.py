"""Changed block tracking: the bitmap of `VDI.list_changed_blocks`, and the extents it stands for.

One bit for each 64 KiB of the disk, most significant bit first, in base64 (sm drivers/cbtutil.py and VDI.py). The
bitmap may be longer than the disk; the padding means nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from protocol.errors import FormatError
from protocol.extent import Extent, merge

GRANULE = 64 << 10
_FORMAT = "CBT bitmap"
# Bytes of bitmap looked at in one go: 128 GiB of disk, and a few MiB of memory, however large the disk is.
_PIECE = 256 << 10


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


def changed_extents(bitmap: bytes, size_from: int, size_to: int) -> list[Extent]:
    """What has to be read of a disk of `size_to` bytes to bring a copy of `size_from` bytes up to date.

    That is what the bitmap names, and everything it cannot vouch for: a last granule that is not whole, what lies past
    the end of a short bitmap, and what was added when the disk grew.

    Raises `FormatError` if the disk shrank: then the bitmap belongs to something else.
    """
    if size_from < 0 or size_to < size_from:
        raise FormatError(_FORMAT, f"it is for a disk of {size_to} bytes, which had {size_from} before")
    reach = min(len(bitmap) * 8, size_from // GRANULE)
    edges = _edges(np.frombuffer(bitmap, dtype=np.uint8, count=-(-reach // 8)), reach) * GRANULE
    extents = list(map(Extent, edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist()))
    if reach * GRANULE < size_to:
        extents.append(Extent(reach * GRANULE, size_to - reach * GRANULE))
        extents[-2:] = merge(extents[-2:])
    return extents


def bitmap_of(extents: Iterable[Extent], size: int) -> bytes:
    """The bitmap of a disk of `size` bytes with a bit set for each granule that `extents` touch."""
    granules = -(-size // GRANULE)
    bits = np.zeros(granules, dtype=np.uint8)
    for extent in extents:
        if extent.length > 0:
            bits[extent.offset // GRANULE : -(-extent.end // GRANULE)] = 1
    return np.packbits(bits).tobytes()


def _edges(bitmap: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """The positions, among the first `count` bits, where runs of ones start and end, by turns."""
    found: list[npt.NDArray[np.int64]] = []
    last = 0
    for start in range(0, len(bitmap), _PIECE):
        piece = bitmap[start : start + _PIECE]
        before = np.empty(len(piece), dtype=np.uint8)  # for each byte, the bit in front of it
        before[0] = last
        np.bitwise_and(piece[:-1], 1, out=before[1:])
        last = int(piece[-1]) & 1
        mixed = np.flatnonzero(piece != before * np.uint8(255))  # the bytes in which something starts or ends
        bits = np.unpackbits(piece[mixed]).reshape(-1, 8)
        row, column = np.nonzero(bits != np.column_stack([before[mixed], bits[:, :-1]]))
        found.append((start + mixed[row]) * 8 + column)
    edges = np.concatenate([np.empty(0, dtype=np.int64), *found])
    inside = edges[edges < count]
    return np.append(inside, count) if len(inside) % 2 else inside  # a run that ends with the bitmap
