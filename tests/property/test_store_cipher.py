"""What is sealed opens as itself only: unchanged, whole, and under its own name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mover.store import record
from mover.store.backend import Buffer, ObjectMissingError
from mover.store.cipher import BLOCK, HEAD_LENGTH, TAG_LENGTH, BadSealError
from mover.store.identity import Identity
from mover.store.opened import Opened

CIPHER = Identity.of(bytes(range(32)), encrypted=True).cipher
OTHERS = Identity.of(bytes(32), encrypted=True).cipher
LENGTHS = st.one_of(
    st.integers(0, 2000), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7, 5 * BLOCK])
)


def content(length: int) -> bytes:
    return (b"0123456789abcdef" * (length // 16 + 1))[:length]


class Gathered:
    """An upload into memory."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, buffers: Sequence[Buffer]) -> None:
        self.data += b"".join(buffers)

    def commit(self) -> bool:
        return True

    def abort(self) -> None:
        pass


class One:
    """One object to read ranges of."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key != "name":
            raise ObjectMissingError(key)
        return self.data[offset : None if length is None else offset + length]


def read_all(data: bytes, blocks: int) -> bytes:
    """As copies of the index are made."""
    source = Opened(One(data), CIPHER)  # type: ignore[arg-type]
    found, offset = b"", 0
    while piece := source.get("name", offset, blocks * BLOCK):
        found += piece
        if len(piece) < blocks * BLOCK:
            break
        offset += len(piece)
    return found


@given(LENGTHS, st.lists(st.integers(1, 3 * BLOCK), max_size=5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_objects_come_back_in_whatever_pieces(length: int, cuts: list[int], blocks: int) -> None:
    plain = content(length)
    upload = Gathered()
    sealing = CIPHER.sealing("name", upload)
    start = 0
    for cut in [*cuts, length]:
        sealing.write([plain[start : start + cut][:10], plain[start : start + cut][10:]])
        start += cut
    assert sealing.commit()
    for sealed in (upload.data, CIPHER.seal("name", plain)):
        assert len(sealed) == HEAD_LENGTH + length + max(-(-length // BLOCK), 1) * TAG_LENGTH
        assert CIPHER.open("name", sealed) == plain == read_all(sealed, blocks)
        assert plain[:64] not in sealed or length < 8


@given(LENGTHS, st.data())
@settings(max_examples=100, deadline=None)
def test_objects_that_are_not_what_was_sealed_do_not_open(length: int, data: st.DataObject) -> None:
    sealed = CIPHER.seal("name", content(length))
    harm = data.draw(st.sampled_from(["flip", "cut", "grow", "swap"]))
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = {
        "flip": sealed[:at] + bytes([sealed[at] ^ 1 << data.draw(st.integers(0, 7))]) + sealed[at + 1 :],
        "cut": sealed[:at],
        "grow": sealed + bytes(data.draw(st.integers(1, 40))),
        "swap": sealed[:HEAD_LENGTH]
        + sealed[HEAD_LENGTH + BLOCK + TAG_LENGTH :]
        + sealed[HEAD_LENGTH : HEAD_LENGTH + BLOCK + TAG_LENGTH],
    }[harm]
    if changed == sealed:
        return
    for opens in (lambda: CIPHER.open("name", changed), lambda: read_all(changed, 1), lambda: read_all(changed, 3)):
        with pytest.raises(BadSealError):
            opens()


def test_objects_open_under_their_own_name_and_key_only() -> None:
    sealed = CIPHER.seal("points/1", b"plain")
    for cipher, name in ((CIPHER, "points/2"), (CIPHER, ""), (OTHERS, "points/1")):
        with pytest.raises(BadSealError):
            cipher.open(name, sealed)
    assert CIPHER.seal("points/1", b"plain") != sealed


@given(st.binary(max_size=3000), st.booleans(), st.data())
@settings(deadline=None)
def test_records_come_back_and_nothing_else_does(plain: bytes, compressed: bool, data: st.DataObject) -> None:
    id = bytes(range(32))
    compressor = record.compressor(1) if compressed else None
    made = record.seal(id, record.CHUNK, plain, compressor, CIPHER)
    stored = bytes(made.payload)
    assert (len(stored) - 28) % 512 == 0 and len(stored) - 28 <= len(plain) + 512
    decompressor = record.decompressor()
    assert record.expand(id, memoryview(stored), made.meta, decompressor, CIPHER) == plain
    assert bytes(record.seal(id, record.CHUNK, plain, compressor, CIPHER).payload) != stored, "no nonce is used twice"
    at = data.draw(st.integers(0, len(stored) - 1))
    flipped = stored[:at] + bytes([stored[at] ^ 1 << data.draw(st.integers(0, 7))]) + stored[at + 1 :]
    for wrong_id, wrong, meta, cipher in (
        (id, flipped, made.meta, CIPHER),
        (id, stored[:at], made.meta, CIPHER),
        (id, stored + b"\0", made.meta, CIPHER),
        (bytes(32), stored, made.meta, CIPHER),
        (id, stored, made.meta ^ 1 << 24, CIPHER),
        (id, stored, made.meta, OTHERS),
    ):
        with pytest.raises(record.BadRecordError):
            record.expand(wrong_id, memoryview(wrong), meta, decompressor, cipher)
