"""The server after the handshake: whatever is asked, the answer is the content, or the error that fits."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from errno import EINVAL, EIO, EOVERFLOW, EPERM
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.nbd.server import STEP, Export, Manners, MemoryRun, RequestError, Run, ZeroRun, serve

SIZE = 3 * STEP + 4608
UNIT = 64 << 10
PATTERN = memoryview((bytes(range(1, 256)) * (SIZE // 255 + 1))[:SIZE])
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
DF, ONE = 1 << 2, 1 << 3
MOST = 32 << 20


class Request(NamedTuple):
    kind: int
    flags: int
    offset: int
    length: int


class Disk:
    """Units of 64 KiB that are data or holes; parts of it that begin in `bad` steps cannot be read."""

    def __init__(self, data: Sequence[bool], bad: set[int]) -> None:
        self.size = SIZE
        self._data = data
        self._bad = bad
        self.content = bytearray(PATTERN)
        for unit in range(-(-SIZE // UNIT)):
            if not self.is_data(unit * UNIT):
                end = min((unit + 1) * UNIT, SIZE)
                self.content[unit * UNIT : end] = bytes(end - unit * UNIT)

    def is_data(self, offset: int) -> bool:
        return self._data[offset // UNIT % len(self._data)]

    def fails(self, offset: int, length: int) -> bool:
        return any(step in self._bad for step in range(offset // STEP, (offset + length - 1) // STEP + 1))

    def pieces(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]:
        at = offset
        while at < offset + length:
            end = min((at // UNIT + 1) * UNIT, offset + length)
            yield at, end, self.is_data(at)
            at = end

    async def runs(self, offset: int, length: int) -> Iterable[Run]:
        assert 0 < length <= STEP
        assert offset // STEP == (offset + length - 1) // STEP, "a part crosses a boundary"
        assert offset + length <= SIZE
        if self.fails(offset, length):
            raise RequestError(EIO)
        return [
            MemoryRun(PATTERN[start:end]) if data else ZeroRun(end - start)
            for start, end, data in self.pieces(offset, length)
        ]

    async def allocation(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return [(end - start, not data) for start, end, data in self.pieces(offset, length)]


class Line:
    """A connection whose client says all it has to say, and then hangs up."""

    def __init__(self, words: bytes) -> None:
        self._words = memoryview(words)
        self.answers = bytearray()

    async def receive(self, length: int) -> bytes:
        if length > len(self._words):
            raise ConnectionResetError("the client hung up")
        said, self._words = bytes(self._words[:length]), self._words[length:]
        return said

    async def send(self, data: bytes, *, more: bool = False) -> None:
        self.answers += data

    async def send_run(self, run: Run) -> None:
        self.answers += bytes(run.length) if isinstance(run, ZeroRun) else run.view  # type: ignore[union-attr]

    async def start_tls(self, context: object) -> None:
        raise AssertionError


def handshake(structured: bool, allocation: bool) -> bytes:
    def option(number: int, payload: bytes = b"") -> bytes:
        return b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload

    words = b"\0\0\0\3"
    if structured:
        words += option(8)
    if allocation:
        words += option(10, struct.pack(">III", 0, 1, 15) + b"base:allocation")
    return words + option(7, bytes(6))


def talk(disk: Disk, start: bytes, requests: Sequence[Request]) -> bytes:
    """What is answered to the requests, which have their numbers as handles."""
    words = b"".join(
        struct.pack(">IHHQQI", 0x25609513, flags, kind, handle, offset, length)
        + (bytes(length) if kind == WRITE and length <= 1 << 20 else b"")
        for handle, (kind, flags, offset, length) in enumerate(requests)
    )

    @asynccontextmanager
    async def open_export(name: str) -> AsyncIterator[Export]:
        yield disk

    def answers(said: bytes) -> bytes:
        line = Line(said)

        async def run() -> None:
            with suppress(ConnectionResetError):
                await serve(line, Manners(), open_export)  # type: ignore[arg-type]

        asyncio.run(run())
        return bytes(line.answers)

    return answers(start + words)[len(answers(start)) :]


def expected(disk: Disk, request: Request, structured: bool, allocation: bool) -> int:
    """The error that fits, or 0."""
    kind, _, offset, length = request
    if kind == WRITE:
        return EPERM
    if length == 0 or offset + length > SIZE:
        return EINVAL
    if kind == STATUS and allocation:
        return 0
    if kind != READ:
        return EINVAL
    return EIO if disk.fails(offset, length) else 0


def check_simple(disk: Disk, requests: Sequence[Request], answers: bytes) -> None:
    for handle, request in enumerate(requests):
        magic, error, number = struct.unpack_from(">IIQ", answers)
        assert (magic, number) == (0x67446698, handle)
        assert error == expected(disk, request, False, False)
        answers = answers[16:]
        if not error:
            assert answers[: request.length] == disk.content[request.offset : request.offset + request.length]
            answers = answers[request.length :]
    assert answers == b""


def check_structured(disk: Disk, requests: Sequence[Request], answers: bytes, allocation: bool) -> None:
    at = 0
    for handle, request in enumerate(requests):
        content, done, error, chunks = bytearray(request.length if request.kind == READ else 0), 0, 0, 0
        reached = request.offset
        while not done:
            magic, done, kind, number, length = struct.unpack_from(">IHHQI", answers, at)
            assert (magic, number) == (0x668E33EF, handle)
            body = answers[at + 20 : at + 20 + length]
            at += 20 + length
            chunks += 1
            if kind >= 1 << 15:
                error = struct.unpack_from(">I", body)[0]
                assert done
            elif kind == 5:
                check_status(disk, request, body)
            else:
                (offset,) = struct.unpack_from(">Q", body)
                assert offset == reached, "chunks come in order, without gaps"
                data = body[8:] if kind == 1 else bytes(struct.unpack_from(">QI", body)[1])
                content[offset - request.offset :][: len(data)] = data
                assert data == disk.content[offset : offset + len(data)]
                reached += len(data)
        assert error == expected(disk, request, True, allocation)
        if request.kind == READ and not error:
            assert reached == request.offset + request.length
            assert chunks == 1 or not request.flags & DF
    assert at == len(answers)


def check_status(disk: Disk, request: Request, body: bytes) -> None:
    assert body[:4] == b"\0\0\0\1"
    extents = list(struct.iter_unpack(">II", body[4:]))
    assert len(extents) == 1 or not request.flags & ONE
    assert 0 < sum(length for length, _ in extents) <= request.length
    offset = request.offset
    for length, state in extents:
        assert state in (0, 3)
        assert all(data == (state == 0) for _, _, data in disk.pieces(offset, length))
        offset += length


FLAGS = st.sampled_from([0, DF, ONE, DF | ONE, 0xFFFF])
# Ranges that lie within the disk, often over the end of a step, and others.
EDGES = st.integers(0, SIZE) | st.sampled_from([0, STEP - 1, STEP, STEP + 1, 2 * STEP, 3 * STEP, SIZE - 512, SIZE])
INSIDE = st.tuples(EDGES, EDGES).map(lambda edges: (min(edges), max(edges) - min(edges)))
ANY = st.tuples(
    st.sampled_from([0, SIZE - 1, SIZE, SIZE + 1, (1 << 64) - 1]),
    st.sampled_from([0, 1, SIZE, SIZE + 1, (1 << 32) - 1]),
)


def asking(kinds: list[int], extents: st.SearchStrategy[tuple[int, int]]) -> st.SearchStrategy[Request]:
    return st.builds(lambda kind, flags, extent: Request(kind, flags, *extent), st.sampled_from(kinds), FLAGS, extents)


REQUEST = st.sampled_from(
    [
        asking([READ], INSIDE),
        asking([READ], INSIDE),
        asking([STATUS], INSIDE),
        asking([READ, STATUS], ANY),
        asking([FLUSH, TRIM, CACHE, ZEROES, 8, 99, 0xFFFF], INSIDE),
        asking([WRITE], st.tuples(EDGES, st.integers(0, 9000))),
    ]
).flatmap(lambda kind: kind)
REQUESTS = st.lists(REQUEST, min_size=1, max_size=5)


@settings(max_examples=100)
@given(
    data=st.lists(st.booleans(), min_size=1, max_size=9),
    bad=st.sampled_from([set(), {0}, {1}, {2}]),
    requests=REQUESTS,
    structured=st.booleans(),
    allocation=st.booleans(),
)
def test_every_request_is_answered_as_it_should_be(data, bad, requests, structured, allocation):
    disk = Disk(data, bad)
    allocation = allocation and structured
    answers = talk(disk, handshake(structured, allocation), requests)
    if structured:
        check_structured(disk, requests, answers, allocation)
    else:
        check_simple(disk, requests, answers)


@given(rubbish=st.binary(min_size=28, max_size=200))
def test_rubbish_ends_the_connection_without_an_answer(rubbish):
    disk = Disk([True], set())
    start = handshake(True, True)
    if not rubbish.startswith(b"\x25\x60\x95\x13"):
        line = Line(start + rubbish)

        @asynccontextmanager
        async def open_export(name: str) -> AsyncIterator[Export]:
            yield disk

        asyncio.run(serve(line, Manners(), open_export))  # type: ignore[arg-type]
        assert bytes(line.answers).endswith(struct.pack(">QIII", 0x0003E889045565A9, 7, 1, 0))


def test_a_read_of_more_than_a_client_may_ask_for_is_refused() -> None:
    disk = Disk([True], set())
    disk.size = 1 << 40
    answer = struct.pack(">IIQ", 0x67446698, EOVERFLOW, 0)
    assert talk(disk, handshake(False, False), [Request(READ, 0, 0, MOST + 1)]) == answer


def test_a_goodbye_and_a_write_without_end_end_it() -> None:
    disk = Disk([True], set())
    start = handshake(True, False)
    assert talk(disk, start, [Request(DISC, 0, 0, 0), Request(READ, 0, 0, 512)]) == b""
    assert talk(disk, start, [Request(WRITE, 0, 0, MOST + 1), Request(READ, 0, 0, 512)]) == b""
