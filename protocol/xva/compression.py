"""Taking off the compression an archive came in: gzip and zstd by their magic, anything else as it is.

No step makes more than `MAX_PIECE` bytes, whatever a few bytes of input may stand for: zlib can be told so, and zstd is
fed block by block, because no block makes more than 128 KiB.
Sources: RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, Protocol

import zstandard

from protocol.errors import FormatError
from protocol.forward import Bytes, Pass, Plan, Scan, Take

Compression = Literal["none", "gzip", "zstd"]

MAGIC_LENGTH = 4
MAX_PIECE = 1 << 20
# What RFC 8878 wants every decoder to have, and all that levels up to 19 need. More is memory that a stream asks for.
MAX_WINDOW = 8 << 20

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAX_BLOCK = 128 << 10
_RLE = 1
_HAS_CHECKSUM = 1 << 2
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


def detect(start: Bytes) -> Compression:
    """Which compression a stream has that begins with these bytes, `MAGIC_LENGTH` of them."""
    magic = bytes(start[:MAGIC_LENGTH])
    if magic.startswith(_GZIP):
        return "gzip"
    return "zstd" if magic == _ZSTD else "none"


class Unpacker:
    """Takes a stream piece by piece and gives out what was compressed, in views of at most `MAX_PIECE` bytes.

    `compression` is known once `MAGIC_LENGTH` bytes have come. What is not compressed is not copied. After a
    `FormatError` it is of no more use.
    """

    def __init__(self) -> None:
        self.compression: Compression | None = None
        self._start = b""
        self._layer: _Layer = _Plain()

    def feed(self, data: Bytes) -> Iterator[memoryview]:
        """Take the next bytes; exhaust the iterator before feeding more. Raises `FormatError`."""
        view = memoryview(data).cast("B")
        if self.compression is None:
            missing = MAGIC_LENGTH - len(self._start)
            self._start += bytes(view[:missing])
            view = view[missing:]
            if len(self._start) < MAGIC_LENGTH:
                return
            self.compression = detect(self._start)
            if self.compression != "none":
                self._layer = _Gzip() if self.compression == "gzip" else _Zstd()
            yield from self._layer.feed(memoryview(self._start))
        yield from self._layer.feed(view)

    def finish(self) -> None:
        """Say that the stream is over. Raises `FormatError` if it was cut short."""
        if self.compression is None:
            raise FormatError("archive", "the stream ends too early", len(self._start))
        self._layer.finish()


class _Layer(Protocol):
    """What takes one kind of compression off."""

    def feed(self, view: memoryview, /) -> Iterator[memoryview]: ...

    def finish(self) -> None: ...


class _Plain:
    def feed(self, view: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(view), MAX_PIECE):
            yield view[start : start + MAX_PIECE]

    def finish(self) -> None:
        pass


class _Gzip:
    """One member after another, as gzip itself reads them."""

    # zlib copies what is left over at each step.
    _INPUT = 64 << 10

    def __init__(self) -> None:
        self._position = 0
        self._member = zlib.decompressobj(31)
        self._between = False

    def feed(self, view: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(view), self._INPUT):
            part: Bytes = view[start : start + self._INPUT]
            self._position += len(part)
            while part:
                if self._between:
                    self._member = zlib.decompressobj(31)
                    self._between = False
                data, part = self._step(part)
                if data:
                    yield memoryview(data)

    def finish(self) -> None:
        if not self._between:
            raise FormatError("gzip", "the stream ends too early", self._position)

    def _step(self, part: Bytes) -> tuple[bytes, bytes]:
        """What some input makes, and the input that is left."""
        try:
            data = self._member.decompress(part, MAX_PIECE)
        except zlib.error as error:
            raise FormatError("gzip", str(error), self._position - len(part)) from None
        self._between = self._member.eof
        return data, self._member.unused_data if self._between else self._member.unconsumed_tail


class _Zstd:
    """One frame after another. Frames and blocks are told apart here; what is in a block, libzstd knows."""

    def __init__(self) -> None:
        self._scan: Scan[memoryview] = Scan("zstd", self._plan)
        self._frame = _new_frame()

    def feed(self, view: memoryview) -> Iterator[memoryview]:
        return filter(len, self._scan.feed(view))

    def finish(self) -> None:
        self._scan.finish()

    def _plan(self, scan: Scan[memoryview]) -> Plan[memoryview]:
        magic = yield Take(4)
        while True:
            if int.from_bytes(magic, "little") in _SKIPPABLE:
                yield Pass(int.from_bytes((yield Take(4)), "little"))
            elif magic == _ZSTD:
                yield from self._frame_plan(scan)
            else:
                raise FormatError("zstd", "no frame where one should be", scan.position - 4)
            magic = yield Take(4, optional=True)

    def _frame_plan(self, scan: Scan[memoryview]) -> Plan[memoryview]:
        self._frame = _new_frame()
        descriptor = yield Take(1)
        self._decompress(_ZSTD + descriptor + (yield Take(_header_rest(descriptor[0]))))
        last = False
        while not last:
            head = yield Take(3)
            self._decompress(head)
            fields = int.from_bytes(head, "little")
            last, kind, size = bool(fields & 1), fields >> 1 & 3, fields >> 3
            if size > _MAX_BLOCK:
                raise FormatError("zstd", f"a block of {size} bytes", scan.position - 3)
            yield Pass(1 if kind == _RLE else size, self._made)
        if descriptor[0] & _HAS_CHECKSUM:
            yield Pass(4, self._made)
        if not self._frame.eof:
            raise FormatError("zstd", "a frame that does not end where it should", scan.position)

    def _made(self, _: int, view: memoryview) -> memoryview:
        return memoryview(self._decompress(view))

    def _decompress(self, data: Bytes) -> bytes:
        try:
            return self._frame.decompress(data)
        except zstandard.ZstdError as error:
            raise FormatError("zstd", str(error), self._scan.position) from None


def _new_frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()


def _header_rest(descriptor: int) -> int:
    """The bytes of a frame's header after its descriptor: window, dictionary id, size of the content."""
    single = descriptor >> 5 & 1
    size = (single, 2, 4, 8)[descriptor >> 6]
    return (1 - single) + (0, 1, 2, 4)[descriptor & 3] + size
