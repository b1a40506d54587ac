"""VHDs as other writers lay them out, put together by hand, so that nothing of the writer under test is trusted."""

import struct
import uuid
from collections.abc import Iterable

DYNAMIC = 3
ABSENT = 0xFFFFFFFF
SECTOR = 512


def checksummed(data: bytes, at: int) -> bytes:
    value = ~sum(data) & 0xFFFFFFFF
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


def footer(size: int, kind: int, header_offset: int, version: int = 0x10000) -> bytes:
    fields = struct.pack(
        ">8sIIQI4sI4sQQIII16sB427x", b"conectix", 2, version, header_offset, 0, b"else", 1, b"\0" * 4, size, size, 0,
        kind, 0, uuid.UUID(int=1).bytes, 0,
    )  # fmt: skip
    return checksummed(fields, 64)


def header(bat: int, entries: int, block: int, locators: bytes = b"") -> bytes:
    fields = struct.pack(
        ">8sQQIIII16sII512s192s256x", b"cxsparse", 2**64 - 1, bat, 0x10000, entries, block, 0, bytes(16), 0, 0, b"",
        locators,
    )  # fmt: skip
    return checksummed(fields, 36)


def batmap(at: int, full: bytes) -> bytes:
    """The header of a batmap at byte `at`, and its bits."""
    bits = padded(full)
    return padded(struct.pack(">8sQIII", b"tdbatmap", at + SECTOR, len(bits) // SECTOR, 0x10002, 0)) + bits


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def build(
    size: int,
    block: int,
    contents: dict[int, tuple[bytes, bytes]],
    order: Iterable[int],
    gap: int = 0,
    header_offset: int = 512,
    *,
    with_batmap: bool = False,
    name_behind: bytes = b"",
) -> bytes:
    """A stream with bitmap and content of each block, placed in `order`, `gap` sectors apart.

    `name_behind` is a name of the parent, which stands behind all blocks.
    """
    entries = -(-size // block)
    bat_at = header_offset + 1024 + gap * SECTOR
    bat = [ABSENT] * entries
    start = bat_at + -(-4 * entries // SECTOR) * SECTOR
    body = batmap(start, b"\xa5") if with_batmap else b""
    for number in order:
        body += b"?" * gap * SECTOR
        bat[number] = (start + len(body)) // SECTOR
        body += padded(contents[number][0]) + contents[number][1]
    table = struct.pack(f">{entries}I", *bat)
    table = table.ljust(-(-len(table) // SECTOR) * SECTOR, b"\xff")
    ending = footer(size, DYNAMIC, header_offset)
    locator = struct.pack(">4sIIIQ", b"W2ru", SECTOR, len(name_behind), 0, start + len(body))
    body += padded(name_behind)
    head = ending.ljust(header_offset, b"\0") + header(bat_at, entries, block, locator if name_behind else b"")
    return head.ljust(bat_at, b"\0") + table + body + ending
