"""Writing an XVA that a server imports: the parts around the data, with the length known before the first byte.

Blocks of zeros are left out but for the first and the last of each disk, as the servers do. They tell where a block
belongs by the length of the very first one they saw; so if the first disk is shorter than a block, none has gaps.
Source: xen-api ocaml/xapi/stream_vdi.ml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from protocol.forward import Bytes
from protocol.xva.check import EXTENSIONS, LENGTHS, Kind, build_digest, digest_of
from protocol.xva.ova import MAX_OVA
from protocol.xva.reader import BLOCK
from protocol.xva.tar import END, RECORD, build_header, padded

# Names have eight digits.
MAX_DISK = BLOCK * 10**8

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_-]{0,79}")


class XvaDisk(NamedTuple):
    """A disk to write: its reference in ova.xml, its size in bytes, the numbers of its blocks that are not zero."""

    ref: str
    size: int
    blocks: Sequence[int]


class Block(NamedTuple):
    """A block to write: `length` bytes of the disk from byte `offset` on."""

    number: int
    offset: int
    length: int


class XvaWriter:
    """The parts of an archive: `head`, then for each of `disks`, for each of its `disk_blocks`, `block_head`, the data,
    `block_padding`, `block_tail`; then `trailer`. Together they have `length` bytes.

    `disks` are sorted into the order that the servers insist on. SHA-1 checksums are for hosts before 8.1.
    Raises `ValueError`.
    """

    def __init__(self, ova: bytes, disks: Sequence[XvaDisk], *, checksum: Kind = "xxhash") -> None:
        if not 0 < len(ova) <= MAX_OVA:
            raise ValueError(f"an ova.xml of {len(ova)} bytes; {MAX_OVA} are the limit")
        self.disks = tuple(sorted(disks))
        self.checksum = checksum
        self._ova = ova
        gaps = not disks or self.disks[0].size >= BLOCK
        self._blocks = {disk.ref: _written(disk, gaps=gaps) for disk in disks}
        if len(self._blocks) < len(disks):
            raise ValueError("two disks have one reference")
        self._sizes = {disk.ref: disk.size for disk in disks}
        self.length = self._length()

    def head(self) -> bytes:
        """ova.xml and what it needs."""
        return build_header("ova.xml", len(self._ova)) + self._ova + self.block_padding(len(self._ova))

    def disk_blocks(self, disk: XvaDisk) -> Iterator[Block]:
        """The blocks to write, in order."""
        for number in self._blocks[disk.ref]:
            offset = number * BLOCK
            yield Block(number, offset, min(BLOCK, disk.size - offset))

    def block_head(self, ref: str, number: int, length: int) -> bytes:
        """What stands before the data of a block."""
        return build_header(_name(ref, number), length)

    def block_padding(self, length: int) -> bytes:
        """What stands between the data of a block of `length` bytes and its tail: often nothing."""
        return bytes(padded(length) - length)

    def digest(self, block: Bytes) -> bytes:
        """The checksum of a block. It takes up to 1 ms: a worker thread's work."""
        return digest_of(self.checksum, block)

    def block_tail(self, ref: str, number: int, digest: bytes) -> bytes:
        """The member with the checksum of a block."""
        text = build_digest(self.checksum, digest)
        if len(text) != LENGTHS[self.checksum]:
            raise ValueError(f"a {self.checksum} checksum has not {len(digest)} bytes")
        header = build_header(_name(ref, number) + EXTENSIONS[self.checksum], len(text))
        return header + text + self.block_padding(len(text))

    def tail_length(self, length: int) -> int:
        """Bytes of padding and tail behind a block of `length` bytes."""
        return padded(length) - length + 2 * RECORD

    def trailer(self) -> bytes:
        """What ends the archive."""
        return END

    def _length(self) -> int:
        total = RECORD + padded(len(self._ova)) + len(END)
        for ref, blocks in self._blocks.items():
            # Header, data, the checksum's header and the checksum; only the last may be short.
            last = self._sizes[ref] - blocks[-1] * BLOCK
            total += len(blocks) * 3 * RECORD + (len(blocks) - 1) * BLOCK + padded(last)
        return total


def _name(ref: str, number: int) -> str:
    return f"{ref}/{number:08}"


def _written(disk: XvaDisk, *, gaps: bool) -> Sequence[int]:
    """The numbers of the blocks to write: those that are not zero, the first and the last."""
    if not _REF.fullmatch(disk.ref):
        raise ValueError(f"{disk.ref!r} cannot be the name of a disk in an XVA")
    if not 0 < disk.size <= MAX_DISK:
        raise ValueError(f"a disk in an XVA has 1 to {MAX_DISK} bytes, not {disk.size}")
    count = -(-disk.size // BLOCK)
    if any(left >= right for left, right in pairwise(chain([-1], disk.blocks, [count]))):
        raise ValueError(f"the blocks of {disk.ref} are to be ascending, and within the disk")
    if not gaps:
        return range(count)
    ends = {0, count - 1} - {disk.blocks[0], disk.blocks[-1]} if disk.blocks else {0, count - 1}
    return sorted([*ends, *disk.blocks]) if ends else disk.blocks
