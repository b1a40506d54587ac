"""An NBD server with xapi-nbd's manners that does, per connection, what it is told: for what nbdkit cannot do."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.nbd_fixtures import MiB, pattern


@dataclass(frozen=True)
class Manner:
    """How one connection is treated. Numbers count the reads that are still answered properly."""

    refuse: bool = False  # closed before any byte, as when the server has too many
    close_after: int | None = None  # closed without a word; -1: right after the handshake
    stall_after: int | None = None  # no answer any more
    error_after: int | None = None  # EIO, and then the connection ends
    cut_after: int | None = None  # the reply's head and half of the data, then closed
    bad_offset: int | None = None  # reading here ends the connection, in the middle of the reply
    late: asyncio.Event | None = None  # answers wait for it
    size: int | None = None


@dataclass
class Fake:
    """What it served: connections in order, options seen, and (connection, offset, length) of every read asked for."""

    port: int = 0
    connections: int = 0
    options: list[int] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    on_connect: Callable[[], None] = lambda: None
    manner: Callable[[int], Manner] = lambda number: Manner()
    size: int = 16 * MiB
    pki: Path | None = None


@asynccontextmanager
async def fake_server(*manners: Manner, size: int = 16 * MiB, pki: Path | None = None) -> AsyncIterator[Fake]:
    """Serve the pattern. The n-th connection gets the n-th manner, those after them the last one."""
    fake = Fake(size=size, pki=pki)
    given: Sequence[Manner] = manners or (Manner(),)
    fake.manner = lambda number: given[min(number, len(given) - 1)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _serve(fake, reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()


async def _serve(fake: Fake, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = fake.connections
    fake.connections += 1
    fake.on_connect()
    manner = fake.manner(number)
    if manner.refuse:
        return
    writer.write(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
    await reader.readexactly(4)
    while True:
        magic, option, length = struct.unpack(">8sII", await reader.readexactly(16))
        assert magic == b"IHAVEOPT"
        payload = await reader.readexactly(length)
        fake.options.append(option)
        if option == 1:
            break
        if option == 5 and fake.pki is not None:
            writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 1, 0))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(fake.pki / "server-cert.pem", fake.pki / "server-key.pem")
            await writer.start_tls(context)
        else:
            writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 0x80000001, 0))
    fake.exports.append(payload.decode())
    size = manner.size or fake.size
    writer.write(struct.pack(">QH", size, 3) + bytes(124))
    if manner.close_after == -1:
        return
    answered = 0
    while True:
        magic, _, kind, handle, offset, length = struct.unpack(">IHHQQI", await reader.readexactly(28))
        if kind != 0:
            return
        fake.reads.append((number, offset, length))
        fake.asked.set()
        if answered == manner.close_after:
            return
        if answered == manner.stall_after:
            await reader.read()
            return
        if answered == manner.error_after:
            writer.write(struct.pack(">IIQ", 0x67446698, 5, handle))
            return
        if manner.late is not None:
            await manner.late.wait()
        data = pattern(offset, length)
        if answered == manner.cut_after or offset == manner.bad_offset:
            writer.write(struct.pack(">IIQ", 0x67446698, 0, handle) + data[: length // 2])
            return
        writer.write(struct.pack(">IIQ", 0x67446698, 0, handle) + data)
        await writer.drain()
        answered += 1
        fake.answered.set()
