"""A VM with its disks as an XVA stream, as the servers write it.

Source: xen-api ocaml/xapi/export.ml, stream_vdi.ml.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, Protocol

import xxhash
import zstandard

from mover.simulator.ova import TAR_END, member, tar_header
from mover.simulator.sparse import read_range
from mover.simulator.storage import Disks

BLOCK = 1 << 20
_ZEROS = bytes(BLOCK)

Send = Callable[[bytes], Awaitable[None]]
Checksum = Literal["xxhash", "sha1"]


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _packer(use_compression: str | None) -> _Packer:
    if use_compression in ("true", "gzip"):
        return zlib.compressobj(1, wbits=31)
    return zstandard.ZstdCompressor(1).compressobj() if use_compression == "zstd" else _Plain()


class XvaExport:
    """One stream, compressed as asked for. `checksum` is the kind this release knows."""

    def __init__(self, send: Send, use_compression: str | None, checksum: Checksum, *, keep_alive: bool) -> None:
        self._send = send
        self._packer = _packer(use_compression)
        self._checksum = checksum
        self._keep_alive = keep_alive

    async def begin(self, ova_xml: bytes) -> None:
        """The description, first of all."""
        await self._write(member("ova.xml", ova_xml))

    async def disk(self, disks: Disks, uuid: str, name: str) -> None:
        """All blocks of a disk that are not zero, the first and the last one in any case."""
        number = 0
        size = disks.size(uuid)
        quiet = False
        with disks.pinned():
            for offset, data in _blocks(disks, uuid, size):
                first_or_last = offset == 0 or offset + len(data) == size
                if first_or_last or not (data is _ZEROS or _ZEROS.startswith(data)):
                    await self._block(f"{name}/{number:08d}", data)
                    quiet = False
                elif self._keep_alive and not quiet:
                    # It takes a number of its own, and the block of zeros after it takes another one.
                    await self._block(f"{name}/{number:08d}", b"")
                    number += 1
                    quiet = True
                number += 1

    async def end(self) -> None:
        """The end of the tar."""
        await self._write(TAR_END)
        rest = self._packer.flush()
        if rest:
            await self._send(rest)

    async def _block(self, name: str, data: bytes) -> None:
        if self._checksum == "xxhash":
            check = member(f"{name}.xxhash", xxhash.xxh64(data).hexdigest().upper().encode(), 0)
        else:
            check = member(f"{name}.checksum", hashlib.sha1(data, usedforsecurity=False).hexdigest().encode(), 0)
        # Not joined: a copy of every block is what a benchmark would see.
        await self._write(tar_header(name, len(data), 0))
        await self._write(data)
        await self._write(bytes(-len(data) % 512) + check)

    async def _write(self, data: bytes) -> None:
        packed = self._packer.compress(data)
        if packed:
            await self._send(packed)


def _blocks(disks: Disks, uuid: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Every block with its content; what is in no file of the chain is not looked for. Hold the disks pinned."""
    offset, parts, room = 0, list[bytes](), min(BLOCK, size)
    for run in disks.runs(uuid, 0, size):
        position, end = run.file_offset, run.file_offset + run.length
        while position < end:
            length = min(room, end - position)
            parts.append(_ZEROS[:length] if run.fd is None else read_range(run.fd, position, length))
            position += length
            room -= length
            if not room:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                yield offset, data
                offset += len(data)
                parts, room = [], min(BLOCK, size - offset)
