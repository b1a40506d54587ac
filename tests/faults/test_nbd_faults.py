"""Connections that fail in every way: each wanted byte is still delivered exactly once, or the error is clear."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from protocol.arena import Arena
from protocol.errors import NbdConnectError, NbdError, NbdRequestError, PoolUnreachableError, XapiError
from protocol.extent import Extent, total
from protocol.nbd import Connection, Endpoint, Observed, Patience, Retry, Timeouts, open_reader
from tests.nbd_fakes import Manner, fake_server
from tests.nbd_fixtures import KiB, MiB, Sink, at, budget, nbdkit, needs_nbdkit, nothing_left, plain

QUICK = Timeouts(connect=5, handshake=5, request=5)
HASTY = Patience(tries=4, first_pause=0.01, stall=0.2)
WHOLE = [Extent(0, 16 * MiB)]
SCATTERED = [Extent(number * 128 * KiB, 64 * KiB) for number in range(128)]


def known(host: str = "host") -> dict[str, Observed]:
    """What is known of a host after a few answers that came at once."""
    observed = Observed()
    for _ in range(Observed.ENOUGH):
        observed.add(64 * KiB, 1e-5)
    return {host: observed}


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: servers answer at once, so short requests are asked for together."""
    monkeypatch.setattr(Observed, "NEGLIGIBLE", 1000.0)


@pytest.mark.usefixtures("prompt")
@pytest.mark.parametrize("slot", [64 * KiB, 1 * MiB])
@pytest.mark.parametrize("seed", range(6))
async def test_random_faults_deliver_every_byte_once(tmp_path: Path, seed: int, slot: int) -> None:
    random = Random(seed)

    def manner() -> Manner:
        after = random.randrange(1, 30)
        kind = random.choice(["close_after", "error_after", "cut_after", "stall_after", "refuse", "fine"])
        if kind == "fine":
            return Manner()
        return Manner(refuse=True) if kind == "refuse" else Manner(**{kind: after})

    wanted = [Extent(i * 256 * KiB, random.choice([64, 128, 192]) * KiB) for i in range(64)]
    sink = Sink()
    patience = Patience(tries=8, first_pause=0.005, attempts=30, stall=0.1)
    manners = [Manner(close_after=9), *(manner() for _ in range(12)), Manner()]
    async with fake_server(*manners) as fake:
        locate = at(plain(fake.port))
        timeouts = Timeouts(request=0.4)
        arena = Arena(6, slot)
        async with open_reader(
            locate, budget=budget(tmp_path), timeouts=timeouts, patience=patience, observed=known()
        ) as reader:
            await reader.read(wanted, arena, sink.take)
        assert len(arena._free) == 6
    sink.check(wanted)


@needs_nbdkit
@pytest.mark.usefixtures("prompt")
@pytest.mark.parametrize(
    ("wanted", "slot", "rate"), [(WHOLE, 256 * KiB, "30%"), (SCATTERED, 1 * MiB, "10%")], ids=["alone", "together"]
)
async def test_error_replies_are_tried_again(tmp_path: Path, wanted: list[Extent], slot: int, rate: str) -> None:
    sink = Sink()
    arena = Arena(6, slot)
    patience = Patience(attempts=60)
    with nbdkit("--filter=error", "pattern", "16M", "error=EIO", f"error-pread-rate={rate}") as port:
        async with (
            nothing_left(arena),
            open_reader(at(plain(port)), budget=budget(tmp_path), patience=patience, observed=known()) as reader,
        ):
            stats = await reader.read(wanted, arena, sink.take)
    sink.check(wanted)
    assert (max(sink.together) > 1) == (wanted is SCATTERED)
    assert stats.retried > 0


@needs_nbdkit
async def test_a_read_that_never_works_is_an_error(tmp_path: Path) -> None:
    arena = Arena(6, 256 * KiB)
    with nbdkit("--filter=error", "pattern", "16M", "error=EIO", "error-pread-rate=100%") as port:
        async with nothing_left(arena):
            with pytest.raises(NbdRequestError, match="error 5 reading 262144 bytes at byte"):
                async with open_reader(at(plain(port)), budget=budget(tmp_path)) as reader:
                    await reader.read(WHOLE, arena, Sink().take)


async def test_a_place_whose_read_ends_the_connection_is_an_error(tmp_path: Path) -> None:
    """xapi-nbd closes the connection when a read fails: that must not go on for ever."""
    async with fake_server(Manner(bad_offset=5 * MiB)) as fake:
        patience = Patience(tries=30, first_pause=0.001, attempts=3)
        locate = at(plain(fake.port))
        async with open_reader(locate, connections=1, budget=budget(tmp_path), patience=patience) as reader:
            with pytest.raises(NbdError):
                await reader.read(WHOLE, Arena(6, 256 * KiB), Sink().take)
        assert 3 <= [offset for _, offset, _ in fake.reads].count(5 * MiB) <= 4


async def test_a_stalled_connection_costs_its_own_share_only(tmp_path: Path) -> None:
    """The others read everything else, and at the end also what the stalled one had: no time-out is waited for."""
    sink = Sink()
    async with fake_server(Manner(stall_after=2), Manner()) as fake:
        async with open_reader(at(plain(fake.port)), connections=2, budget=budget(tmp_path), patience=HASTY) as reader:
            async with asyncio.timeout(Timeouts().request / 2):
                stats = await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
        assert {number for number, _, _ in fake.reads} == {0, 1}
    sink.check(WHOLE)
    assert 1 <= stats.hedged <= 2
    assert stats.bytes_read == 16 * MiB


async def test_what_was_overtaken_is_cut_where_connections_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop: the thread of another lane could meet a connection that is being closed."""
    cut_in: list[threading.Thread] = []
    abort = Connection.abort

    def noted(connection: Connection, error: NbdError) -> None:
        if "overtaken" in error.reason:
            cut_in.append(threading.current_thread())
        abort(connection, error)

    monkeypatch.setattr(Connection, "abort", noted)
    sink = Sink()
    async with (
        fake_server(Manner(stall_after=2), Manner()) as fake,
        open_reader(at(plain(fake.port)), connections=2, budget=budget(tmp_path), patience=HASTY) as reader,
    ):
        await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
    sink.check(WHOLE)
    assert cut_in == [threading.current_thread()]


@pytest.mark.usefixtures("prompt")
async def test_requests_that_stall_together_are_all_overtaken(tmp_path: Path) -> None:
    sink = Sink()
    async with fake_server(Manner(stall_after=2), Manner()) as fake:
        reader_of = open_reader(
            at(plain(fake.port)), connections=2, budget=budget(tmp_path), patience=HASTY, observed=known()
        )
        async with reader_of as reader, asyncio.timeout(Timeouts().request / 2):
            stats = await reader.read(SCATTERED, Arena(6, 1 * MiB), sink.take)
        first = [offset for number, offset, _ in fake.reads if number == 0]
    sink.check(SCATTERED)
    # In the midst of what it was asked for together, which is what was delivered last.
    assert len(first) == 3 and sink.together[-1] > 1
    assert 1 <= stats.hedged <= 2
    assert stats.bytes_read == total(SCATTERED)


async def test_a_lone_connection_that_stalls_is_replaced(tmp_path: Path) -> None:
    sink = Sink()
    retries: list[Retry] = []
    async with fake_server(Manner(stall_after=5), Manner()) as fake:
        reader_of = open_reader(
            at(plain(fake.port)),
            connections=1,
            budget=budget(tmp_path),
            timeouts=Timeouts(request=0.2),
            patience=HASTY,
            on_retry=retries.append,
        )
        async with reader_of as reader:
            stats = await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
    sink.check(WHOLE)
    assert stats.retried in (1, 2) and len(retries) == 1 and "no answer" in retries[0].reason


async def test_a_connection_that_ends_gives_its_work_to_the_others(tmp_path: Path) -> None:
    sink = Sink()
    async with fake_server(Manner(close_after=3), Manner()) as fake:
        locate = at(plain(fake.port))
        async with open_reader(locate, connections=2, budget=budget(tmp_path), patience=HASTY) as reader:
            await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
        assert {number for number, _, _ in fake.reads} >= {0, 1}
    sink.check(WHOLE)


@pytest.mark.parametrize(("disks", "connections", "limit"), [(1, 2, 1), (4, 4, 12)], ids=["one disk", "four disks"])
async def test_who_waits_for_a_place_gets_that_of_a_connection_that_died(
    tmp_path: Path, disks: int, connections: int, limit: int
) -> None:
    """Every place at the host is taken, and each disk wants one more when all connections end."""
    shared = budget(tmp_path, limit)

    async def read() -> None:
        sink = Sink()
        reader_of = open_reader(at(plain(fake.port)), connections=connections, budget=shared, patience=HASTY)
        async with reader_of as reader:
            await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
        sink.check(WHOLE)

    async with (
        fake_server(*[Manner(close_after=3)] * limit, Manner()) as fake,
        asyncio.timeout(Timeouts().slot / 30),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(disks):
            group.create_task(read())


async def test_a_connection_that_is_given_up_leaves_its_place_to_another_disk(tmp_path: Path) -> None:
    shared = budget(tmp_path, limit=2)
    both, late = asyncio.Event(), asyncio.Event()
    patience = Patience(tries=1)

    async def read() -> None:
        sink = Sink()
        reader_of = open_reader(at(plain(fake.port)), connections=2, budget=shared, patience=patience)
        async with reader_of as reader:
            await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
        sink.check(WHOLE)

    # The first disk waits for its first answer, and its other connection ends.
    async with fake_server(Manner(late=late), Manner(close_after=-1), Manner()) as fake:
        fake.on_connect = lambda: both.set() if fake.connections == 2 else None
        async with asyncio.timeout(Timeouts().request / 2), asyncio.TaskGroup() as group:
            slow = group.create_task(read())
            await both.wait()
            await read()
            assert not slow.done()
            late.set()


async def test_what_a_cancelled_read_leaves_takes_no_place(tmp_path: Path) -> None:
    shared = budget(tmp_path, limit=1)
    sink = Sink()
    async with (
        fake_server(Manner(stall_after=0), Manner()) as fake,
        open_reader(at(plain(fake.port)), connections=1, budget=shared) as reader,
    ):
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(reader.read(WHOLE, Arena(6, 256 * KiB), Sink().take))
            await fake.asked.wait()
            reading.cancel()
        (await shared.acquire("host", 5)).release()
        await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
    sink.check(WHOLE)


async def test_a_host_that_refuses_is_left_to_the_other(tmp_path: Path) -> None:
    sink = Sink()
    async with fake_server() as good, fake_server(Manner(refuse=True)) as full:
        endpoints = [plain(full.port, "full"), plain(good.port, "good")]
        async with open_reader(at(*endpoints), budget=budget(tmp_path), patience=HASTY) as reader:
            await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
    sink.check(WHOLE)
    assert not full.exports and len(good.exports) >= 1


async def test_all_hosts_gone_is_one_clear_error(tmp_path: Path) -> None:
    retries: list[Retry] = []
    async with fake_server(Manner(close_after=2), Manner(refuse=True)) as fake:
        reader_of = open_reader(at(plain(fake.port)), budget=budget(tmp_path), patience=HASTY, on_retry=retries.append)
        async with reader_of as reader:
            with pytest.raises(NbdConnectError, match=f"127.0.0.1:{fake.port}: no connection is left"):
                await reader.read(WHOLE, Arena(6, 256 * KiB), Sink().take)
    assert retries and all(retry.pause > 0 for retry in retries)


async def test_a_disk_of_another_size_is_refused(tmp_path: Path) -> None:
    async with fake_server(Manner(close_after=2), Manner(size=8 * MiB)) as fake:
        locate = at(plain(fake.port))
        async with open_reader(locate, budget=budget(tmp_path), patience=HASTY) as reader:
            with pytest.raises(NbdConnectError, match="8388608 bytes instead of 16777216"):
                await reader.read(WHOLE, Arena(6, 256 * KiB), Sink().take)


async def test_a_server_that_hangs_up_after_every_handshake_is_an_error(tmp_path: Path) -> None:
    patience = replace(HASTY, attempts=100)  # a connection is given up before the request is
    async with fake_server(Manner(close_after=-1)) as fake:
        async with open_reader(at(plain(fake.port)), budget=budget(tmp_path), patience=patience) as reader:
            with pytest.raises(NbdConnectError, match="no connection is left"):
                await reader.read(WHOLE, Arena(6, 256 * KiB), Sink().take)
        assert fake.connections <= 1 + 4 * HASTY.tries


@pytest.mark.parametrize("transient", [True, False])
async def test_the_pool_fails_while_connections_are_renewed(tmp_path: Path, transient: bool) -> None:
    """A pool that is away for a moment is asked again; one that says no ends the read with its own words."""
    asked = 0

    async def locate() -> Sequence[Endpoint]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise PoolUnreachableError("https://pool", "away") if transient else XapiError("HANDLE_INVALID")
        return [plain(fake.port)]

    sink = Sink()
    async with (
        fake_server(Manner(close_after=3), Manner()) as fake,
        open_reader(locate, connections=1, budget=budget(tmp_path), patience=HASTY) as reader,
    ):
        if transient:
            await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
            sink.check(WHOLE)
        else:
            with pytest.raises(XapiError, match="HANDLE_INVALID"):
                await reader.read(WHOLE, Arena(6, 256 * KiB), sink.take)
