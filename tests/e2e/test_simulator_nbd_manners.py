"""The simulated NBD daemon byte by byte: what XAPI's says to which option and request, and the faults on request."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from mover.simulator.faults import Faults, HostFault, NbdFault
from mover.simulator.nbd import NbdDaemon
from mover.simulator.storage import Disks
from tests.disks_fixtures import MiB, nbd_daemon, scattered

SIZE = 4 * MiB
NAME = b"/d?session_id=OpaqueRef:session"
GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0001")
CLIENT_FLAGS = bytes.fromhex("00000001")
REPLY_MAGIC = bytes.fromhex("0003e889045565a9")
ACK, UNSUP, POLICY, INVALID, TLS_REQD = 1, (1 << 31) + 1, (1 << 31) + 2, (1 << 31) + 3, (1 << 31) + 5
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10


class Client:
    """One connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def receive(self, length: int) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b"reset"

    async def option(self, option: int, payload: bytes = b"") -> None:
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", option, len(payload)) + payload)
        await self.writer.drain()

    async def answer(self, option: int, payload: bytes = b"") -> int:
        await self.option(option, payload)
        magic, echoed, answer, length = struct.unpack(">8sIII", await self.receive(20))
        assert (magic, echoed, length) == (REPLY_MAGIC, option, 0)
        return answer

    async def open(self, name: bytes = NAME) -> bytes:
        await self.option(EXPORT_NAME, name)
        return await self.receive(134)

    async def request(self, offset: int, length: int, kind: int = 0, handle: int = 7, flags: int = 0) -> None:
        self.writer.write(struct.pack(">IHHQQI", 0x25609513, flags, kind, handle, offset, length))
        await self.writer.drain()

    async def reply(self) -> tuple[int, int]:
        magic, errno, handle = struct.unpack(">IIQ", await self.receive(16))
        assert magic == 0x67446698
        return errno, handle

    async def read(self, offset: int, length: int) -> bytes:
        await self.request(offset, length)
        assert await self.reply() == (0, 7)
        return await self.receive(length)


@asynccontextmanager
async def connected(daemon: NbdDaemon) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port, limit=8 * MiB)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def greeted(daemon: NbdDaemon) -> AsyncIterator[Client]:
    async with connected(daemon) as client:
        assert await client.receive(18) == GREETING
        client.writer.write(CLIENT_FLAGS)
        yield client


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Both loops: they wait for sockets, and tell of TLS that ends badly, each in their own way."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "sr")


async def test_export_name_is_the_only_way_in(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        for option in (INFO, GO, STRUCTURED, LIST_META, SET_META, 99):
            assert await client.answer(option, b"x" * 9) == UNSUP
        assert await client.answer(LIST) == POLICY
        assert await client.answer(STARTTLS) == POLICY
        assert await client.open() == struct.pack(">QH", SIZE, 3) + bytes(124)
        assert await client.read(0, SIZE) == content
        assert await client.read(SIZE - 512, 512) == content[-512:]
        await client.request(0, 0, kind=2)
        assert await client.rest() == b""


async def test_tls_comes_first(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    context = ssl.create_default_context(cafile=None)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with nbd_daemon(disks, tmp_path, mode="tls") as daemon, greeted(daemon) as client:
        for option in (LIST, INFO, GO, STRUCTURED, SET_META):
            assert await client.answer(option) == TLS_REQD
        assert await client.answer(STARTTLS) == ACK
        await client.writer.start_tls(context)
        assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        assert await client.answer(STARTTLS) == INVALID
        assert await client.answer(GO) == UNSUP
        assert await client.answer(LIST) == POLICY
        assert await client.open() == struct.pack(">QH", SIZE, 3) + bytes(124)
        assert await client.read(0, SIZE) == content


@pytest.mark.parametrize("option", [EXPORT_NAME, ABORT])
async def test_before_tls_these_end_the_connection(disks: Disks, tmp_path: Path, option: int) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path, mode="tls") as daemon, greeted(daemon) as client:
        await client.option(option, NAME if option == EXPORT_NAME else b"")
        assert await client.rest() == b""


async def test_abort_is_acknowledged(disks: Disks, tmp_path: Path) -> None:
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        assert await client.answer(ABORT) == ACK
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "name",
    [b"/d?session_id=OpaqueRef:other", b"/none?session_id=OpaqueRef:session", b"/d", b"d", b"", b"\xff\xfe", b"/d?a=b"],
)
async def test_a_bad_export_is_met_with_silence(disks: Disks, tmp_path: Path, name: bytes) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.option(EXPORT_NAME, name)
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        ((1, 512, 0), 22),
        ((0, 511, 0), 22),
        ((0, 0, 1), 1),
        ((0, 0, 3), 22),
        ((0, 512, 4), 22),
        ((0, 512, 7), 22),
    ],
    ids=["unaligned offset", "unaligned length", "write", "flush", "trim", "block status"],
)
async def test_an_error_ends_the_connection(
    disks: Disks, tmp_path: Path, request_: tuple[int, int, int], errno: int
) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        offset, length, kind = request_
        await client.request(offset, length, kind, handle=99)
        assert await client.reply() == (errno, 99)
        assert await client.rest() == b""


async def test_flags_make_a_command_unknown(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        await client.request(0, 512, flags=4)
        assert await client.reply() == (22, 7)
        assert await client.rest() == b""


async def test_a_read_past_the_end_is_noticed_after_the_header(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        await client.request(SIZE - MiB - 512, 2 * MiB)
        assert await client.reply() == (0, 7)
        assert len(await client.rest()) == MiB


async def test_requests_may_be_sent_ahead_and_are_answered_in_order(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        for number in range(8):
            await client.request(number * 4096, 4096, handle=number)
        for number in range(8):
            assert await client.reply() == (0, number)
            assert await client.receive(4096) == content[number * 4096 : (number + 1) * 4096]


async def test_the_seventeenth_connection_is_closed_without_a_word(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon:
        clients = [await asyncio.open_connection("127.0.0.1", daemon.port) for _ in range(16)]
        for reader, _ in clients:
            assert await reader.readexactly(18) == GREETING
        async with connected(daemon) as client:
            assert await client.rest() == b""
        assert daemon.connected == 16
        for _, writer in clients:
            writer.transport.abort()


async def test_networks_without_a_clear_purpose_close_the_door(disks: Disks, tmp_path: Path) -> None:
    async with nbd_daemon(disks, tmp_path, mode="closed") as daemon, connected(daemon) as client:
        assert await client.rest() == b""


async def test_stopping_cuts_connections_and_detaches(disks: Disks, tmp_path: Path) -> None:
    scattered(disks, "d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        await daemon.stop()
        assert daemon.connected == 0
        assert await client.rest() in (b"", b"reset")


async def test_a_disk_destroyed_under_a_reader_ends_the_connection(disks: Disks, tmp_path: Path) -> None:
    scattered(disks, "d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open()
        disks.delete("d")
        await client.request(0, 512)
        assert await client.rest() == b""


async def test_a_connection_is_dropped_after_so_many_bytes(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    faults = Faults()
    faults.arm(NbdFault("drop", after=1000))
    async with nbd_daemon(disks, tmp_path, faults=faults) as daemon:
        async with greeted(daemon) as client:
            await client.open()
            await client.request(0, 4096)
            assert (await client.rest()) in (struct.pack(">IIQ", 0x67446698, 0, 7) + content[:1000], b"reset")
        async with greeted(daemon) as client:  # the fault is used up
            await client.open()
            assert await client.read(0, 4096) == content[:4096]


async def test_one_byte_is_changed(disks: Disks, tmp_path: Path) -> None:
    content = bytearray(scattered(disks, "d", SIZE))
    faults = Faults()
    faults.arm_json(b'[{"type": "nbd", "kind": "corrupt", "after": 1048579, "host": 0}]')
    async with nbd_daemon(disks, tmp_path, faults=faults) as daemon, greeted(daemon) as client:
        await client.open()
        content[MiB + 3] ^= 0xFF
        assert await client.read(0, SIZE) == content


async def test_a_stall_lasts_until_it_is_released(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    faults = Faults()
    faults.arm(NbdFault("stall", after=4096))
    async with nbd_daemon(disks, tmp_path, faults=faults) as daemon, greeted(daemon) as client:
        await client.open()
        await client.request(0, 8192)
        assert await client.reply() == (0, 7)
        assert await client.receive(4096) == content[:4096]
        async with greeted(daemon) as other:  # nobody else stalls
            await other.open()
            assert await other.read(0, 8192) == content[:8192]
        faults.release()
        assert await client.receive(4096) == content[4096:8192]


async def test_an_error_on_request_is_an_error_reply(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    faults = Faults()
    faults.arm(NbdFault("error", after=4096, errno=5))
    async with nbd_daemon(disks, tmp_path, faults=faults) as daemon, greeted(daemon) as client:
        await client.open()
        await client.read(0, 4096)
        await client.request(4096, 4096)
        assert await client.reply() == (5, 7)
        assert await client.rest() == b""


async def test_a_host_that_is_down_lets_nobody_in(disks: Disks, tmp_path: Path) -> None:
    faults = Faults()
    faults.arm(HostFault(0))
    async with nbd_daemon(disks, tmp_path, faults=faults) as daemon:
        async with connected(daemon) as client:
            assert await client.rest() == b""
        faults.arm(HostFault(0, on=False), NbdFault("refuse"))
        async with connected(daemon) as client:
            assert await client.rest() == b""
        async with greeted(daemon):
            pass


async def test_snapshots_can_merge_under_a_reader(disks: Disks, tmp_path: Path) -> None:
    """Files that a disk is being read from stay readable while chains change."""
    content = scattered(disks, "d", SIZE)
    disks.snapshot("d", "frozen")
    async with nbd_daemon(disks, tmp_path) as daemon, greeted(daemon) as client:
        await client.open(NAME.replace(b"/d", b"/frozen"))
        assert await client.read(0, MiB) == content[:MiB]
        disks.delete("d-snapshot")
        disks.write("d", 0, b"x" * MiB)
        disks.delete("d")
        assert await client.read(0, SIZE) == content
