"""The body of an import: a tar, plain or compressed, read strictly forwards.

Source: xen-api ocaml/xapi/import.ml, stream_vdi.ml; mirage/ocaml-tar lib/tar.ml.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import xxhash
import zstandard

from mover.simulator.failure import Failure

_BLOCK = 512
_PIECE = 1 << 16
_LONGEST_OVA = 16 << 20
BLOCK = 1 << 20

Read = Callable[[int], Awaitable[bytes]]
Write = Callable[[int, bytes], None]


class _Unpacker(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class Entry(NamedTuple):
    """The header of a file in the tar."""

    name: str
    size: int


class TarStream:
    """Files out of a body of `length` bytes, if that is known. Raises IMPORT_ERROR_PREMATURE_EOF where it is too short.

    Real servers do not look at the length, and wait for more until the client hangs up.
    """

    def __init__(self, read: Read, length: int | None) -> None:
        self._read_body = read
        self._left = length
        self._unpacker: _Unpacker | None = None
        self._ahead = bytearray()

    async def first(self) -> Entry | None:
        """The first header. What is not a tar is taken for zstd by its magic, else for gzip."""
        self._ahead += await self._exactly_raw(_BLOCK)
        if not self._ahead.startswith(b"ova.xml\0"):
            magic = bytes(self._ahead[:4])
            self._unpacker = (
                zstandard.ZstdDecompressor().decompressobj() if magic == b"\x28\xb5\x2f\xfd" else zlib.decompressobj(31)
            )
            packed, self._ahead = bytes(self._ahead), bytearray()
            self._ahead += self._unpacked(packed)
        return await self.entry()

    async def entry(self) -> Entry | None:
        """The next header; None at the end of the tar."""
        header = await self.exactly(_BLOCK)
        if not any(header):
            return None
        stated = header[148:156].strip(b" \0")
        if sum(header) - sum(header[148:156]) + 8 * 32 != int(stated or b"0", 8):
            raise Failure("IMPORT_ERROR", "a tar header has a wrong checksum")
        return Entry(header[:100].rstrip(b"\0").decode("latin-1"), int(header[124:136].strip(b" \0") or b"0", 8))

    async def content(self, entry: Entry, limit: int) -> bytes:
        """What is in the file, without the padding."""
        if entry.size > limit:
            raise Failure("IMPORT_ERROR", f"{entry.name} has {entry.size} bytes")
        data = await self.exactly(entry.size + -entry.size % _BLOCK)
        return data[: entry.size]

    async def exactly(self, length: int) -> bytes:
        while len(self._ahead) < length:
            if self._unpacker is None:
                self._ahead += await self._exactly_raw(length - len(self._ahead))
            else:
                self._ahead += self._unpacked(await self._some())
        data = bytes(self._ahead[:length])
        del self._ahead[:length]
        return data

    def _unpacked(self, data: bytes) -> bytes:
        assert self._unpacker is not None
        try:
            return self._unpacker.decompress(data)
        except (zlib.error, zstandard.ZstdError) as error:
            raise Failure("IMPORT_ERROR", f"the archive is damaged: {error}") from None

    async def _exactly_raw(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = await self._read(length - len(data))
            if not piece:
                raise Failure("IMPORT_ERROR_PREMATURE_EOF")
            data += piece
        return data

    async def _read(self, most: int) -> bytes:
        if self._left is None:
            return await self._read_body(most)
        piece = await self._read_body(min(most, self._left)) if self._left else b""
        self._left -= len(piece)
        return piece

    async def _some(self) -> bytes:
        piece = await self._read(_PIECE)
        if not piece:
            raise Failure("IMPORT_ERROR_PREMATURE_EOF")
        return piece


async def read_ova(tar: TarStream) -> bytes:
    """The description, which has to come first."""
    entry = await tar.first()
    if entry is None or entry.name != "ova.xml":
        raise Failure("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", entry.name if entry else "")
    return await tar.content(entry, _LONGEST_OVA)


class DiskStream:
    """The disks of a tar, one after the other; the length of the very first block counts for all of them."""

    def __init__(self, tar: TarStream, *, inline: bool, force: bool) -> None:
        self._tar = tar
        self._inline = inline
        self._force = force
        self._unit = 0
        self.table: dict[str, str] = {}

    async def receive(self, name: str, size: int, write: Write) -> None:
        """Read the disk called `name` in the archive to its end. What is left out is not written."""
        last, offset = -1, 0
        while offset < size:
            entry = await self._tar.entry()
            if entry is None:
                raise Failure("IMPORT_ERROR_PREMATURE_EOF")
            folder, _, digits = entry.name.rpartition("/")
            if folder != name or not digits.isdigit() or int(digits) <= last:
                raise Failure("INTERNAL_ERROR", f"Invalid XVA file: unexpected {entry.name}")
            if last < 0 and int(digits):
                raise Failure("INTERNAL_ERROR", "Invalid XVA file: the first chunk is missing")
            data = await self._tar.content(entry, BLOCK)
            await self._check(entry.name, data)
            self._unit = self._unit or len(data)
            offset += (int(digits) - last - 1) * self._unit
            if offset + len(data) > size:
                raise Failure("VDI_IO_ERROR", "Device I/O errors")
            if data:
                write(offset, data)
            offset += len(data)
            last = int(digits)
            await asyncio.sleep(0)

    async def _check(self, name: str, data: bytes) -> None:
        if not self._inline:
            self.table[name] = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            return
        entry = await self._tar.entry()
        sums = {
            f"{name}.checksum": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
            f"{name}.xxhash": xxhash.xxh64(data).hexdigest().upper(),
        }
        if entry is None or entry.name not in sums:
            raise Failure(
                "IMPORT_ERROR", f"a checksum of {name} was expected, not {entry.name if entry else 'the end'}"
            )
        stated = (await self._tar.content(entry, 64)).decode("latin-1")
        if stated != sums[entry.name] and not self._force:
            raise Failure("IMPORT_ERROR_SOME_CHECKSUMS_FAILED")
