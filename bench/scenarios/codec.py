"""What zstd and BLAKE3 do alone with chunks in memory, on one core: the ceiling of a full, and why this compression."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import zstandard
from blake3 import blake3

from bench.measure import Case, Check, MiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from mover.store import record

_CHUNK = 64 << 10
_STANDARD = "zstd 1"


def run(setting: Setting) -> Iterator[Case]:
    """One case for the image's chunks, with other parameters beside level 1, and one for chunks that are noise."""
    most = setting.pick(512, 256, 16) * MiB
    yield _case("chunks of the image, one core", _chunks(setting.image(), most), _compressors(), setting.rounds)
    noise = [random.Random(number).randbytes(_CHUNK) for number in range(most // 4 // _CHUNK)]
    yield _case("chunks of noise, one core", noise, {_STANDARD: _compressors()[_STANDARD]}, setting.rounds)


def _case(name: str, chunks: Sequence[bytes], compressors: Mapping[str, zstandard.ZstdCompressor], rounds: int) -> Case:
    case = Case(name)
    measured: dict[str, Callable[[], Sample]] = {who: _compressing(one, chunks) for who, one in compressors.items()}
    samples = interleave(rounds, {**measured, "BLAKE3": lambda: _hashing(chunks)})
    case.series = seconds_of(samples)
    for who in compressors:
        case.checks.append(Check(f"{who}: speed", _speed(chunks, case.series[who]), unit="MB/s"))
        if who != _STANDARD:
            faster = ratio(case.series[_STANDARD], case.series[who])
            stored = samples[who][-1].facts["stored"] / samples[_STANDARD][-1].facts["stored"]
            case.checks.append(Check(f"{who}: times as fast as {_STANDARD}", faster, unit="x"))
            case.checks.append(Check(f"{who}: bytes stored / {_STANDARD}'s", stored, unit="x"))
    case.checks.append(Check("BLAKE3: speed", _speed(chunks, case.series["BLAKE3"]), unit="MB/s"))
    case.failures += [
        f"{who} does not give back what it got" for who in compressors if not _whole(compressors[who], chunks)
    ]
    return case


def _compressors() -> dict[str, zstandard.ZstdCompressor]:
    level = zstandard.ZstdCompressionParameters.from_level
    shorter = level(1, source_size=_CHUNK, min_match=7, target_length=1)
    return {
        _STANDARD: zstandard.ZstdCompressor(level=1),
        "zstd -1": zstandard.ZstdCompressor(level=-1),
        "zstd 1, min_match 7, target_length 1": zstandard.ZstdCompressor(compression_params=shorter),
        "ours: zstd 1, min_match 7": record.compressor(1, _CHUNK),
    }


def _compressing(compressor: zstandard.ZstdCompressor, chunks: Sequence[bytes]) -> Callable[[], Sample]:
    def once() -> Sample:
        started = time.thread_time()
        # A chunk that does not become smaller is stored as it is.
        stored = sum(min(_CHUNK, len(compressor.compress(chunk))) for chunk in chunks)
        return Sample(time.thread_time() - started, {"stored": stored})

    return once


def _hashing(chunks: Sequence[bytes]) -> Sample:
    started = time.thread_time()
    for chunk in chunks:
        blake3(chunk).digest()
    return Sample(time.thread_time() - started)


def _whole(compressor: zstandard.ZstdCompressor, chunks: Sequence[bytes]) -> bool:
    back = zstandard.ZstdDecompressor()
    return all(back.decompress(compressor.compress(chunk), max_output_size=_CHUNK) == chunk for chunk in chunks)


def _speed(chunks: Sequence[bytes], seconds: Sequence[float]) -> float:
    """Million bytes a second of processor time."""
    return sum(map(len, chunks)) / statistics.median(seconds) / 1e6


def _chunks(image: Path, most: int) -> list[bytes]:
    """The first chunks of an image, at most so many bytes, without those that are all zeros."""
    found: list[bytes] = []
    zeros = bytes(_CHUNK)
    with image.open("rb") as file:
        while len(found) * _CHUNK < most and len(chunk := file.read(_CHUNK)) == _CHUNK:
            if chunk != zeros:
                found.append(chunk)
    return found


SCENARIOS = (Scenario("codec", "zstd and BLAKE3 alone, in memory, on one core", run, quick=False),)
