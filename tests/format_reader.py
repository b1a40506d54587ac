"""A second reader of the store's format, written from docs/FORMAT.md alone; it shares no code with the product.

    python tests/format_reader.py STORE POINT DISK OUT    restore one disk (by position) of a point to a raw file

The passphrase of an encrypted store is read from the variable PASSPHRASE.

It is made to be read, not to be fast, and it trusts nothing: whatever is not as the page says raises `Wrong`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

ZERO = bytes(32)
FANOUT = 128
CHUNK, PAGE, BLOB = 1, 2, 4


class Wrong(Exception):
    """The store is not as its format says."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


class Place(NamedTuple):
    pack: Path
    offset: int
    length: int
    meta: int


class Reader:
    """The whole index is read into a dictionary: good for stores of tests."""

    def __init__(self, root: Path, passphrase: str = "") -> None:
        self.root = root
        described = (root / "store.json").read_bytes()
        self.config = self.checked(described, "store.json")
        need(self.config["format"] == "mover-store" and self.config["version"] == 1, "version of store.json")
        need(self.config["fanout"] == FANOUT and self.config["hash"] == "blake3", "store.json")
        need(self.config["aead"] in ("none", "aes-256-gcm") and not self.config["features"]["read"], "store.json")
        self.encrypted = self.config["aead"] != "none"
        self.chunk_size: int = self.config["chunk_size"]
        key = bytes.fromhex(self.config["key"])
        if self.encrypted:
            key = self._unwrap(described, passphrase)
        need(len(key) == 32, "key of store.json")
        self.keys = {
            name: blake3(key, derive_key_context=f"mover store 1 {name}").digest()
            for name in ("chunk", "page", "blob", "check", "record", "object")
        }
        self.places = self._index()

    def check(self, data: bytes) -> bytes:
        return blake3(data, key=self.keys["check"]).digest()

    @staticmethod
    def canonical(fields: dict[str, Any]) -> bytes:
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def checked(self, data: bytes, name: str) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(data)
        check = fields.pop("check")
        need(blake3(self.canonical(fields)).hexdigest() == check, f"check of {name}")
        return fields

    # Encryption

    def _unwrap(self, described: bytes, passphrase: str) -> bytes:
        for path in sorted(self.root.glob("keys/*")):
            need(path.stat().st_size <= 4096, f"length of {path.name}")
            slot = self.checked(path.read_bytes(), path.name)
            need((slot["format"], slot["version"], slot["kdf"]) == ("mover-key", 1, "argon2id"), path.name)
            memory, passes, lanes = slot["memory"], slot["passes"], slot["lanes"]
            need(8 * lanes <= memory <= 1 << 20 and 1 <= passes <= 16 and 1 <= lanes <= 16, f"cost of {path.name}")
            wrapped, salt = bytes.fromhex(slot.pop("wrapped")), bytes.fromhex(slot["salt"])
            kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
            try:
                secret = AESGCM(kdf.derive(passphrase.encode()))
                plain = secret.decrypt(wrapped[:12], wrapped[12:], self.canonical(slot))
            except InvalidTag:
                continue
            if plain[32:] == blake3(described).digest():
                return plain[:32]
        raise Wrong("no key opens with this passphrase")

    def opened(self, path: Path, name: str) -> bytes:
        """The plain bytes of a point or segment."""
        data = path.read_bytes()
        if not self.encrypted:
            return data
        need(data[:8] == b"MVSEAL\0\x01" and len(data) >= 48, f"head of {name}")
        key = AESGCM(blake3(data[8:32] + name.encode(), key=self.keys["object"]).digest())
        starts = range(32, len(data), 65552)
        try:
            return b"".join(
                key.decrypt(struct.pack("<QI", at, start == starts[-1]), data[start : start + 65552], name.encode())
                for at, start in enumerate(starts)
            )
        except InvalidTag as error:
            raise Wrong(f"seal of {name}") from error

    # Index

    def _index(self) -> dict[bytes, Place]:
        segments: dict[str, dict[bytes, Place]] = {}
        replaced: set[str] = set()
        for path in sorted(self.root.glob("index/*/*")):
            match = re.fullmatch(r"(\d)/([0-9a-f]{32})\.(\d+)", str(path.relative_to(self.root / "index")))
            if match:
                segments[match[0]], gone = self._segment(self.opened(path, f"index/{match[0]}"))
                replaced |= gone
        places: dict[bytes, Place] = {}
        for name, found in segments.items():
            if name not in replaced:
                places |= {id: place for id, place in found.items() if id not in places}
        return places

    def _segment(self, data: bytes) -> tuple[dict[bytes, Place], set[str]]:
        need(len(data) >= 64 + 128 and data[:8] == b"MVIDX\0\0\x01", "head of a segment")
        trailer = data[-128:]
        count, packs, replaces, window, bits, _level, _ = struct.unpack_from("<QIIIBBH", trailer)
        need(1 <= bits <= 32 and trailer[-8:] == b"MVIDXEND", "trailer of a segment")
        at = [64, 64 + 8 * count, 64 + 48 * count]
        at.append(at[-1] + 4 * ((1 << bits) + 1))
        at.append(at[-1] + 32 * packs)
        at.append(at[-1] + 24 * replaces)
        need(at[-1] + 128 == len(data), "length of a segment")
        need(self.check(data[: at[2]]) == trailer[56:88], "check of a segment's columns")
        need(self.check(data[at[2] : at[5]] + trailer[:88]) == trailer[88:120], "check of a segment's tables")
        prefixes = struct.unpack(f"<{count}Q", data[at[0] : at[1]])
        self._fence(prefixes, struct.unpack(f"<{(1 << bits) + 1}I", data[at[2] : at[3]]), bits, window)
        names: list[Path | None] = []
        for wid, seq, kind, size in struct.iter_unpack("<16sIB3xQ", data[at[3] : at[4]]):
            need(kind in (1, 2), "kind of a pack in a segment")
            path = self.root / f"packs/{wid[-1]:02x}/{wid.hex()}/{seq:06x}.{'d' if kind == 1 else 'm'}"
            usable = path.is_file() and path.stat().st_size == size
            names.append(path if usable else None)
        found: dict[bytes, Place] = {}
        for number, row in enumerate(struct.iter_unpack("<24sIIII", data[at[1] : at[2]])):
            rest, pack, offset, length, meta = row
            path = names[pack]
            if path is not None:
                found[struct.pack("<Q", prefixes[number]) + rest] = Place(path, offset, length, meta)
        gone = {
            f"{level}/{wid.hex()}.{number}"
            for wid, number, level in struct.iter_unpack("<16sIB3x", data[at[4] : at[5]])
        }
        return found, gone

    def _fence(self, prefixes: tuple[int, ...], fence: tuple[int, ...], bits: int, window: int) -> None:
        need(list(prefixes) == sorted(prefixes), "order of a segment")
        for number, below in enumerate(fence):
            need(sum(prefix < number << (64 - bits) for prefix in prefixes) == below, "fence of a segment")
        widest = max(high - low for low, high in pairwise(fence))
        need(max(widest, 1) == window, "window of a segment")

    # Records

    def record(self, id: bytes, kind: int) -> bytes:
        need(id in self.places, f"record {id.hex()} is in no segment")
        place = self.places[id]
        need(place.length <= (4 << 20) + 1024, "length of a record")
        with place.pack.open("rb") as file:
            file.seek(place.offset)
            stored = file.read(56 + place.length)
        magic, length, meta, zero, found, check = struct.unpack_from("<4sIII32sQ", stored)
        payload = stored[56:]
        need((magic, length, meta, zero, found) == (b"REC1", len(payload), place.meta, 0, id), "header of a record")
        need(xxhash.xxh3_64_intdigest(payload) == check, "xxh3 of a record")
        plain_length, codec = meta & 0xFFFFFF, meta >> 28
        need(meta >> 24 & 15 == kind and codec in (0, 1) and plain_length <= 4 << 20, "meta of a record")
        if self.encrypted:
            secret = AESGCM(blake3(id, key=self.keys["record"]).digest())
            payload = secret.decrypt(payload[:12], payload[12:], struct.pack("<I", meta) + id).rstrip(b"\0")[:-1]
        plain = payload
        if codec == 1:
            plain = zstandard.ZstdDecompressor().decompress(payload, max_output_size=plain_length)
        need(len(plain) == plain_length, "plain length of a record")
        key = self.keys[{CHUNK: "chunk", PAGE: "page", BLOB: "blob"}[kind]]
        need(blake3(plain, key=key).digest() == id, "id of a record")
        return plain

    def page(self, level: int, id: bytes) -> list[bytes]:
        data = self.record(id, PAGE)
        need(data[:3] == b"PG1" and data[3] == level, "head of a page")
        present = [position for position in range(FANOUT) if data[4 + (position >> 3)] >> (position & 7) & 1]
        need(bool(present) and len(data) == 20 + 32 * len(present), "length of a page")
        ids = [ZERO] * FANOUT
        for number, position in enumerate(present):
            ids[position] = data[20 + 32 * number : 52 + 32 * number]
            need(ids[position] != ZERO, "a zero id stored in a page")
        return ids

    def chunks(self, root: bytes, size: int) -> Iterator[tuple[int, bytes]]:
        """Number and content of every chunk that is not zero."""
        count = -(-size // self.chunk_size)
        level = 0
        while FANOUT ** (level + 1) < count:
            level += 1
        yield from self._below(root, level, 0, size, count)

    def _below(self, id: bytes, level: int, number: int, size: int, count: int) -> Iterator[tuple[int, bytes]]:
        if id == ZERO:
            return
        for position, child in enumerate(self.page(level, id)):
            below = number * FANOUT + position
            need(child == ZERO or below * FANOUT**level < count, "an id past the end of a disk")
            if level:
                yield from self._below(child, level - 1, below, size, count)
            elif child != ZERO:
                data = self.record(child, CHUNK)
                need(len(data) == min(self.chunk_size, size - below * self.chunk_size), "length of a chunk")
                yield below, data

    # Packs and points

    def check_pack(self, path: Path) -> int:
        """Check every byte of a pack that is no payload, and each payload's xxh3; the number of records."""
        data = path.read_bytes()
        need(128 <= len(data) <= 1 << 30, "length of a pack")
        name = (path.parent.name, path.name)
        magic, wid, seq, kind, aead, flags, _, zeros, check = struct.unpack_from("<8s16sIBBHQ16sQ", data)
        need(magic == b"MVPACK\0\x01" and check == xxhash.xxh3_64_intdigest(data[:56]), "header of a pack")
        need(name == (wid.hex(), f"{seq:06x}.{'?dm'[kind]}") and path.parent.parent.name == name[0][-2:], "name")
        need(aead == self.encrypted and flags == 0 and zeros == bytes(16), "header of a pack")
        start, length, count, mac, flags, end = struct.unpack("<QII32sQ8s", data[-64:])
        need(end == b"MVPKEND1" and flags == 0 and start + length + 64 == len(data), "trailer of a pack")
        need(length == 48 * count and count <= 65535, "trailer of a pack")
        need(self.check(data[:64] + data[start:-64]) == mac, "check of a pack")
        position = 64
        for id, offset, stored, meta, low in struct.iter_unpack("<32sIIII", data[start:-64]):
            need(offset == position, "gap in a pack")
            header = struct.unpack_from("<4sIII32sQ", data, offset)
            payload = data[offset + 56 : offset + 56 + stored]
            check = xxhash.xxh3_64_intdigest(payload)
            need(header == (b"REC1", stored, meta, 0, id, check) and low == check & 0xFFFFFFFF, "record of a pack")
            position += 56 + stored
        need(position == start, "end of a pack's records")
        return int(count)

    def points(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted(self.root.glob("points/*")):
            if path.read_bytes() == b"FENCE\n":
                continue
            data = self.opened(path, f"points/{path.name}")
            need(32 < len(data) <= 1 << 20 and self.check(data[:-32]) == data[-32:], f"check of {path.name}")
            fields: dict[str, Any] = json.loads(data[:-32])
            need(fields["format"] == 1, f"format of {path.name}")
            found[data[-32:-24].hex()] = fields
        return found

    def restore(self, point: str, position: str, out: Path) -> None:
        (disk,) = [disk for disk in self.points()[point]["disks"] if disk["position"] == position]
        with out.open("wb") as file:
            file.truncate(disk["size"])
            for number, data in self.chunks(base64.b64decode(disk["root"]), disk["size"]):
                file.seek(number * self.chunk_size)
                file.write(data)

    def metadata(self, point: str) -> bytes:
        return self.record(base64.b64decode(self.points()[point]["metadata"]), BLOB)


if __name__ == "__main__":
    Reader(Path(sys.argv[1]), os.environ.get("PASSPHRASE", "")).restore(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
