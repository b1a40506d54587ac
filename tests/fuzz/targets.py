"""What is fed with rubbish, and what has to hold whatever the rubbish: see `Outcome` and `check`."""

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import xxhash

from protocol.errors import FormatError
from protocol.vhd_stream import Data as VhdData
from protocol.vhd_stream import VhdReader
from protocol.xva.compression import MAX_PIECE, Unpacker, detect
from protocol.xva.ova import MAX_OVA, Ova, disks_of, export_version, parse_ova
from protocol.xva.reader import Data, OvaXml, XvaReader

# A consumer that has seen this much of a bomb of a few kB has seen enough.
ENOUGH = 32 << 20

Pieces = Iterable[bytes]


class Outcome(NamedTuple):
    """What became of an input: the events, neighbouring data joined and hashed, and the error if it was refused."""

    events: list[Any]
    error: FormatError | None


def xva(pieces: Pieces, length: int) -> Iterator[Any]:
    """As a download of an XVA is read, whatever its compression."""
    unpacker, reader = Unpacker(), XvaReader()
    unpacked = 0
    for piece in pieces:
        for view in unpacker.feed(piece):
            assert 0 < len(view) <= MAX_PIECE
            unpacked += len(view)
            yield from reader.feed(view)
            if unpacked > max(ENOUGH, length):
                return
    unpacker.finish()
    reader.finish()


def vhd_download(pieces: Pieces, length: int) -> Iterator[Any]:
    """As a download is read: its length is not known."""
    yield from _vhd(VhdReader(None), pieces)


def vhd_file(pieces: Pieces, length: int) -> Iterator[Any]:
    """As a file is read."""
    if length:
        yield from _vhd(VhdReader(length), pieces)


def _vhd(reader: VhdReader, pieces: Pieces) -> Iterator[Any]:
    for piece in pieces:
        yield from reader.feed(piece)
    reader.finish()


def ova(pieces: Pieces, length: int) -> Iterator[Any]:
    """As ova.xml alone is read."""
    parsed = parse_ova(b"".join(pieces))
    yield parsed
    yield export_version(parsed)
    yield disks_of(parsed)


Target = Callable[[Pieces, int], Iterator[Any]]
TARGETS: dict[str, list[Target]] = {"xva": [xva], "vhd": [vhd_download, vhd_file], "ova": [ova]}


def outcome(target: Target, data: bytes, cuts: Iterable[int]) -> Outcome:
    """Feed `data`, cut at `cuts`. Anything but a `FormatError` comes out as it is, and so fails the test."""
    events: list[Any] = []
    run: Run | None = None
    edges = [0, *sorted(cuts), len(data)]
    pieces = (data[start:end] for start, end in pairwise(edges))
    error = None
    try:
        for count, event in enumerate(target(pieces, len(data))):
            # An event for each byte and each piece is more than any input can ask for, but for a bomb.
            assert count <= 2 * len(data) + len(edges) + ENOUGH // 512, "no end in sight"
            match event:
                case Data(disk, offset, view):
                    run = _extended(run, events, disk, offset, view)
                case VhdData(offset, view):
                    run = _extended(run, events, "", offset, view)
                case OvaXml(xml, _):
                    events.append(("ova.xml", xml))
                case Ova():
                    events.append(repr(event))
                case _:
                    run = None
                    events.append(event)
    except FormatError as caught:
        error = caught
    return Outcome([(e.disk, e.start, e.end, e.hash.digest()) if isinstance(e, Run) else e for e in events], error)


class Run:
    """Data that is next to each other."""

    def __init__(self, disk: str, start: int) -> None:
        self.disk = disk
        self.start = self.end = start
        self.hash = xxhash.xxh3_64()


def _extended(run: Run | None, events: list[Any], disk: str, offset: int, view: memoryview) -> Run:
    assert len(view), "data of no length"
    if run is None or (run.disk, run.end) != (disk, offset):
        run = Run(disk, offset)
        events.append(run)
    run.hash.update(view)
    run.end += len(view)
    return run


def check(target: Target, data: bytes, rng: random.Random, *, traced: bool = False) -> Outcome:
    """Feed `data` in several ways: the same has to come of it, without much memory, and an error is a `FormatError`."""
    if traced:
        tracemalloc.start()
    try:
        whole = outcome(target, data, [])
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
    finally:
        if traced:
            tracemalloc.stop()
    compressed = detect(data) != "none"
    limit = 4 * MAX_OVA if compressed else 12 * len(data) + (1 << 20)
    assert peak < limit, f"{peak} bytes of memory for {len(data)}"
    if len(data) < 600:
        cuts: list[Iterable[int]] = [range(1, len(data))]
    else:
        size = rng.choice([7, 61, 512, 1000, 4096])
        cuts = [range(size, len(data), size), [rng.randrange(len(data)) for _ in range(5)]]
    for edges in cuts:
        again = outcome(target, data, edges)
        assert (again.error is None) == (whole.error is None), f"{whole.error} / {again.error}"
        if not compressed or whole.error is None:  # a decompressor may or may not give what stands before damage
            assert again.events == whole.events
            assert place(again) == place(whole)
    return whole


def place(result: Outcome) -> tuple[str, int | None] | None:
    return None if result.error is None else (result.error.format, result.error.offset)
