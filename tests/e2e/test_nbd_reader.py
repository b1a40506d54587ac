"""The reader over real sockets: several connections, several hosts, limits, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.arena import Arena
from protocol.block import Block
from protocol.errors import NbdConnectError
from protocol.extent import Extent, total
from protocol.nbd import Endpoint, Observed, Patience, Timeouts, open_reader
from tests.nbd_fakes import Manner, fake_server
from tests.nbd_fixtures import KiB, MiB, Sink, at, budget, nbdkit, needs_nbdkit, nothing_left, pattern, plain

QUICK = Timeouts(connect=5, handshake=5, request=5, slot=5)
HASTY = Patience(tries=3, first_pause=0.01, stall=0.2)
SCATTERED = [Extent(i * 192 * KiB, 64 * KiB) for i in range(300)]


@needs_nbdkit
@pytest.mark.parametrize("connections", [1, 4])
async def test_a_whole_disk(tmp_path: Path, connections: int) -> None:
    arena = Arena(8)
    with nbdkit("pattern", "128M") as port:
        async with nothing_left(arena):
            sink = Sink()
            async with open_reader(at(plain(port)), connections=connections, budget=budget(tmp_path)) as reader:
                stats = await reader.read([Extent(0, reader.size)], arena, sink.take)
            sink.check([Extent(0, 128 * MiB)])
            assert (stats.bytes_read, stats.requests, stats.retried, stats.hedged) == (128 * MiB, 64, 0, 0)


@needs_nbdkit
async def test_without_latency_only_the_dirty_bytes_are_read(tmp_path: Path) -> None:
    arena = Arena(8)
    with nbdkit("pattern", "64M") as port:
        async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
            # The first pass learns how fast the server is: one answer may be late on a machine that is busy.
            for merge_gaps in (False, True):
                sink = Sink()
                stats = await reader.read(SCATTERED, arena, sink.take, merge_gaps=merge_gaps)
                sink.check(SCATTERED)
                assert stats.bytes_read == total(SCATTERED)


@needs_nbdkit
async def test_with_latency_gaps_are_read_along_unless_forbidden(tmp_path: Path) -> None:
    arena = Arena(8)
    slow = ("--filter=noparallel", "--filter=delay", "pattern", "64M", "rdelay=10ms", "serialize=requests")
    with nbdkit(*slow) as port:
        async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
            sink = Sink()
            stats = await reader.read(SCATTERED, arena, sink.take)
            sink.check(SCATTERED)
            assert stats.requests < len(SCATTERED) / 4
            assert total(SCATTERED) < stats.bytes_read <= 64 * MiB
            sink = Sink()
            stats = await reader.read(SCATTERED[:40], arena, sink.take, merge_gaps=False)
            sink.check(SCATTERED[:40])
            assert (stats.bytes_read, stats.requests) == (total(SCATTERED[:40]), 40)


@needs_nbdkit
async def test_nothing_to_read_is_no_request(tmp_path: Path) -> None:
    with nbdkit("pattern", "1M") as port:
        async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
            sink = Sink()
            stats = await reader.read([], Arena(1), sink.take)
            assert stats.requests == 0 and not sink.taken


@needs_nbdkit
async def test_one_slot_is_enough_for_any_number_of_connections(tmp_path: Path) -> None:
    arena = Arena(1, 64 * KiB)
    with nbdkit("pattern", "4M") as port:
        sink = Sink()
        async with open_reader(at(plain(port)), connections=4, budget=budget(tmp_path)) as reader:
            await reader.read([Extent(0, 4 * MiB)], arena, sink.take)
        sink.check([Extent(0, 4 * MiB)])


@needs_nbdkit
async def test_the_end_of_an_odd_disk(tmp_path: Path) -> None:
    size = 3 * MiB + 5 * 512
    wanted = [Extent(0, 100), Extent(2 * MiB + 7, size - 2 * MiB - 7)]
    with nbdkit("pattern", str(size)) as port:
        sink = Sink()
        async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
            await reader.read(wanted, Arena(3, 256 * KiB), sink.take)
            with pytest.raises(ValueError, match="was asked for"):
                await reader.read([Extent(0, size + 1)], Arena(1), sink.take)
        sink.check(wanted)


async def test_connections_are_spread_over_the_hosts(tmp_path: Path) -> None:
    all_there = asyncio.Event()

    def count() -> None:
        if one.connections + two.connections == 4:
            all_there.set()

    async with fake_server(Manner(late=all_there)) as one, fake_server(Manner(late=all_there)) as two:
        one.on_connect = two.on_connect = count
        endpoints = [plain(one.port, "one"), plain(two.port, "two")]
        sink = Sink()
        async with open_reader(at(*endpoints), connections=4, budget=budget(tmp_path), timeouts=QUICK) as reader:
            await reader.read([Extent(0, reader.size)], Arena(8, 64 * KiB), sink.take)
        sink.check([Extent(0, 16 * MiB)])
        assert one.connections == two.connections == 2
        assert one.reads and two.reads


async def test_reading_starts_before_the_other_connections_are_up(tmp_path: Path) -> None:
    late = asyncio.Event()
    delivered = asyncio.Event()

    async def locate() -> Sequence[Endpoint]:
        return [plain(fast.port, "fast"), plain(port_of_nobody, "silent")]

    loop = asyncio.get_running_loop()

    def take(blocks: Sequence[Block]) -> None:
        loop.call_soon_threadsafe(delivered.set)
        sink.take(blocks)

    sink = Sink()
    async with fake_server() as fast:
        # A server whose socket listens, and which never says a word.
        silent = await asyncio.start_server(lambda reader, writer: late.wait(), "127.0.0.1", 0)
        port_of_nobody = silent.sockets[0].getsockname()[1]
        async with open_reader(locate, connections=3, budget=budget(tmp_path), timeouts=QUICK) as reader:
            await reader.read([Extent(0, reader.size)], Arena(4, 64 * KiB), take)
        sink.check([Extent(0, 16 * MiB)])
        assert delivered.is_set()
        late.set()
        silent.close()


async def test_the_budget_is_kept(tmp_path: Path) -> None:
    shared = budget(tmp_path, limit=2)
    async with fake_server() as fake:
        open_now: list[int] = []
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                sink = Sink()
                async with open_reader(at(plain(fake.port)), connections=3, budget=shared, timeouts=QUICK) as reader:
                    open_now.append(len(list((tmp_path / "mover-nbd").iterdir())))
                    await reader.read([Extent(0, 4 * MiB)], Arena(4, 64 * KiB), sink.take)
                sink.check([Extent(0, 4 * MiB)])

            for _ in range(4):
                group.create_task(read())
        assert max(open_now) <= 2


async def test_no_host_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NbdConnectError, match="no host offers this disk"):
        async with open_reader(at(), budget=budget(tmp_path)):
            pass


@needs_nbdkit
@pytest.mark.parametrize("blocks", [0, 1, 7])
async def test_cancellation_leaves_nothing(tmp_path: Path, blocks: int) -> None:
    """Cancelled while connecting, at the first block, and in the middle: always at once, and nothing is left."""
    arena = Arena(6, 256 * KiB)
    reached = asyncio.Event()
    taken: list[Extent] = []

    loop = asyncio.get_running_loop()

    def take(came: Sequence[Block]) -> None:
        taken.extend(extent for block in came for extent in block.wanted)
        if len(taken) >= blocks:
            loop.call_soon_threadsafe(reached.set)

    async def read(port: int) -> None:
        async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
            if not blocks:
                reached.set()
            await reader.read([Extent(0, reader.size)], arena, take)

    with nbdkit("--filter=delay", "pattern", "1G", "rdelay=20ms") as port:
        async with nothing_left(arena):
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(read(port))
                await reached.wait()
                reading.cancel()
            assert reading.cancelled()


@needs_nbdkit
async def test_who_is_cancelled_waits_for_what_is_being_dealt_with(tmp_path: Path) -> None:
    """A slot is in use until `take` returns: nobody else may have it before."""
    arena = Arena(1, 256 * KiB)
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    dealt: list[bytes] = []

    def take(blocks: Sequence[Block]) -> None:
        (block,) = blocks
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(20)
        dealt.append(block.view.tobytes())
        assert block.view.tobytes() == pattern(block.offset, len(block.view))

    with nbdkit("pattern", "16M") as port:
        async with nothing_left(arena), asyncio.TaskGroup() as group:

            async def read() -> None:
                async with open_reader(at(plain(port)), connections=2, budget=budget(tmp_path)) as reader:
                    await reader.read([Extent(0, reader.size)], arena, take)

            reading = group.create_task(read())
            await begun.wait()
            reading.cancel()
            await asyncio.sleep(0)
            assert not reading.done() and arena.exhausted
            go_on.set()
        assert reading.cancelled() and dealt


@needs_nbdkit
async def test_a_read_is_held_back_by_its_pace_and_ends_at_once_when_cancelled(tmp_path: Path) -> None:
    arena = Arena(2, 256 * KiB)
    asked: list[int] = []
    loop, waiting = asyncio.get_running_loop(), asyncio.Event()

    def pace(size: int) -> float:
        asked.append(size)
        loop.call_soon_threadsafe(waiting.set)
        return 1000.0

    taken: list[Sequence[Block]] = []

    with nbdkit("pattern", "16M") as port:
        async with nothing_left(arena), asyncio.TaskGroup() as group:

            async def read() -> None:
                async with open_reader(at(plain(port)), connections=1, budget=budget(tmp_path)) as reader:
                    await reader.read([Extent(0, reader.size)], arena, taken.append, pace=pace)

            reading = group.create_task(read())
            await waiting.wait()
            reading.cancel()
        assert asked == [256 * KiB] and not taken


@needs_nbdkit
async def test_an_error_of_the_taker_ends_the_read_as_it_is(tmp_path: Path) -> None:
    arena = Arena(6, 256 * KiB)

    def take(blocks: Sequence[Block]) -> None:
        raise LookupError(f"no room for {blocks[0].offset}")

    with nbdkit("pattern", "64M") as port:
        async with nothing_left(arena):
            with pytest.raises(LookupError, match="no room for"):
                async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
                    await reader.read([Extent(0, reader.size)], arena, take)


async def test_what_was_observed_is_kept_per_host(tmp_path: Path) -> None:
    observed: dict[str, Observed] = {}
    both = asyncio.Event()
    async with fake_server(Manner(late=both)) as one, fake_server() as two:
        two.on_connect = both.set
        endpoints = [plain(one.port, "one"), plain(two.port, "two")]
        async with open_reader(at(*endpoints), connections=2, budget=budget(tmp_path), observed=observed) as reader:
            await reader.read([Extent(0, reader.size)], Arena(8, 64 * KiB), Sink().take)
    assert set(observed) == {"one", "two"}
    assert observed["one"].known


async def test_a_reader_can_be_used_again_after_a_failure(tmp_path: Path) -> None:
    async with fake_server(Manner(close_after=1), Manner(refuse=True), Manner(refuse=True), Manner()) as fake:
        locate = at(plain(fake.port))
        hasty = Patience(tries=2, first_pause=0.01)
        async with open_reader(locate, connections=1, budget=budget(tmp_path), patience=hasty) as reader:
            with pytest.raises(NbdConnectError, match="no connection is left"):
                await reader.read([Extent(0, reader.size)], Arena(4, 64 * KiB), Sink().take)
            sink = Sink()
            await reader.read([Extent(0, reader.size)], Arena(4, 64 * KiB), sink.take)
            sink.check([Extent(0, reader.size)])


async def test_nobody_stands_back_for_a_connection_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    # Whatever had to be waited for: the next sixteen answers let one more lane stand back.
    monkeypatch.setattr("protocol.nbd.work._MANY", 17)
    monkeypatch.setattr("protocol.nbd.work._FEW", 16)
    async with fake_server(Manner(close_after=1), Manner(), Manner(refuse=True)) as fake:
        locate = at(plain(fake.port))
        hasty = Patience(tries=2, first_pause=0.01)
        async with open_reader(locate, connections=2, budget=budget(tmp_path), patience=hasty) as reader:
            for _ in range(2):  # the second time the first seat has no connection from the start
                sink = Sink()
                async with asyncio.timeout(30):
                    await reader.read([Extent(0, reader.size)], Arena(4, 64 * KiB), sink.take)
                sink.check([Extent(0, reader.size)])
