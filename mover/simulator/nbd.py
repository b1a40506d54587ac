"""The NBD daemon of a simulated host, with the manners of XAPI's: see `protocol.nbd.server`.

What only this daemon has: export names that carry a session, a limit of 16 connections that is kept by closing the
seventeenth without a word, latency and bandwidth as on a real network, and faults.

Source: xen-api ocaml/nbd/src/main.ml, lib/consts.ml.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from mover.simulator.failure import Failure
from mover.simulator.faults import Faults, NbdFault
from mover.simulator.storage import Disks, StorageError
from mover.simulator.storage import Run as DiskRun
from protocol.nbd.server import (
    PIECE,
    FileRun,
    Manners,
    MemoryRun,
    RefusedError,
    RequestError,
    Run,
    SocketChannel,
    ZeroRun,
    cut,
    pieces,
    serve,
)

CONNECTIONS = 16
# Seconds before the next try when a connection cannot be accepted.
_BREATH = 0.05

Mode = Literal["tls", "plain", "closed"]


class Backend(Protocol):
    """The content of an attached disk."""

    @property
    def size(self) -> int: ...

    def runs(self, offset: int, length: int) -> Iterable[DiskRun]: ...


@dataclass(frozen=True)
class DiskBackend:
    """A disk of the storage repository. Made by `open_disk`."""

    disks: Disks
    uuid: str
    size: int

    def runs(self, offset: int, length: int) -> Iterable[DiskRun]:
        return self.disks.runs(self.uuid, offset, length)


@contextmanager
def open_disk(disks: Disks, uuid: str) -> Iterator[DiskBackend]:
    """Hold a disk's files open. Raises StorageError."""
    with disks.pinned():
        disks.runs(uuid, 0, 0)
        yield DiskBackend(disks, uuid, disks.size(uuid))


# Given a VDI's UUID and the reference of a session: attach the disk, and detach it in the end. Failure, StorageError
# and RefusedError close the connection without a word, as the daemon does whatever goes wrong.
Attach = Callable[[str, str], AbstractAsyncContextManager[Backend]]


@dataclass
class Network:
    """How the way to a client is: seconds added to each request, bytes per second of each connection."""

    latency: float = 0.0
    bandwidth: float | None = None


class NbdDaemon:
    """Listens on one address. `network` and the attributes of `faults` may change at any time.

    `mode` is asked for each connection: `tls` (networks with the purpose nbd), `plain` (insecure_nbd), `closed`
    (neither, or both). `host` is the number faults know the host by.
    """

    def __init__(
        self,
        address: str,
        attach: Attach,
        faults: Faults,
        *,
        context: ssl.SSLContext | None = None,
        mode: Callable[[], Mode] = lambda: "tls",
        network: Network | None = None,
        host: int = 0,
        port: int = 0,
        connections: int = CONNECTIONS,
    ) -> None:
        self.address = address
        self.port = port
        self.network = network or Network()
        self.served = 0
        self._attach = attach
        self._faults = faults
        self._context = context
        self._mode = mode
        self._host = host
        self._limit = connections
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Listen; connections run in `group`."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._listener = socket.create_server((self.address, self.port), family=family, backlog=64)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accepting = group.create_task(self._accept(self._listener, group))

    async def stop(self) -> None:
        """Listen no more, and cut what is there; disks are detached when this returns."""
        if self._accepting is None or self._listener is None:
            return
        self._accepting.cancel()
        self.cut()
        await asyncio.wait([self._accepting, *self._connections])
        self._listener.close()
        self._accepting = self._listener = None

    def cut(self) -> None:
        """Cut every connection; new ones are still accepted."""
        for task in self._connections:
            task.cancel()

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # gone again, or no descriptor is free
                await asyncio.sleep(_BREATH)
                continue
            # Room is counted, and the purposes are looked at, when a client comes: later changes do not touch it.
            mode, fault = self._mode(), self._faults.take_nbd(self._host)
            refused = fault is not None and fault.kind == "refuse"
            down = self._host in self._faults.hosts_down
            if len(self._connections) >= self._limit or mode == "closed" or refused or down:
                connection.close()
                continue
            self.served += 1
            task = group.create_task(self._serve(_Line(connection, self.network, self._faults, fault), mode))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, line: _Line, mode: Mode) -> None:
        manners = Manners("forced" if mode == "tls" else "none", modern=False)

        @asynccontextmanager
        async def open_export(name: str) -> AsyncIterator[_Attached]:
            uuid, session = _parse_export(name)
            async with _attached(self._attach(uuid, session)) as backend:
                yield _Attached(backend, line, self.network)

        try:
            await serve(line, manners, open_export, self._context)
        except OSError:  # the client is gone, or a fault took the line
            pass
        except (StorageError, Failure):  # the disk failed, or went away under the client
            pass
        finally:
            line.close()


@asynccontextmanager
async def _attached(attaching: AbstractAsyncContextManager[Backend]) -> AsyncIterator[Backend]:
    """What goes wrong on the way in is a refusal."""
    try:
        backend = await attaching.__aenter__()
    except (Failure, StorageError) as error:
        raise RefusedError(str(error)) from None
    try:
        yield backend
    except BaseException as error:
        await attaching.__aexit__(type(error), error, error.__traceback__)
        raise
    await attaching.__aexit__(None, None, None)


class _Attached:
    """A backend as the server wants it, after the network's latency, with the fault that is an error in a reply."""

    def __init__(self, backend: Backend, line: _Line, network: Network) -> None:
        self._backend = backend
        self._line = line
        self._network = network
        self.size = backend.size

    async def runs(self, offset: int, length: int) -> Iterable[Run]:
        if self._network.latency:
            await asyncio.sleep(self._network.latency)
        self._line.check_request(length)
        return map(_run, self._backend.runs(offset, length))

    async def allocation(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return [(run.length, run.fd is None) for run in self._backend.runs(offset, length)]


class _Line(SocketChannel):
    """A connection with a bandwidth and at most one fault. Only content counts, not the headers around it."""

    def __init__(self, connection: socket.socket, network: Network, faults: Faults, fault: NbdFault | None) -> None:
        super().__init__(connection)
        self._network = network
        self._faults = faults
        self._fault = fault
        self._content = 0
        self._due = 0.0

    def check_request(self, length: int) -> None:
        """Raises RequestError for the request that is to fail."""
        fault = self._fault
        if fault is not None and fault.kind == "error" and self._content + length > fault.after:
            self._fault = None
            raise RequestError(fault.errno)

    async def send_run(self, run: Run) -> None:
        fault = self._fault
        if fault is not None and fault.kind != "error" and self._content + run.length > fault.after:
            before = max(0, fault.after - self._content)
            await self._send(cut(run, 0, before))
            run = await self._go_wrong(fault, cut(run, before, run.length - before))
        await self._send(run)

    async def _go_wrong(self, fault: NbdFault, rest: Run) -> Run:
        """What becomes of the content from the fault on."""
        self._fault = None
        if fault.kind == "drop":
            self.abort()
            raise ConnectionResetError("dropped on request")
        if fault.kind == "stall":
            await self._faults.stall()
        elif fault.kind == "corrupt":
            await self._send(_corrupted(cut(rest, 0, 1)))
            return cut(rest, 1, rest.length - 1)
        return rest

    async def _send(self, run: Run) -> None:
        self._content += run.length
        bandwidth = self._network.bandwidth
        if bandwidth is None:
            return await super().send_run(run)
        for piece in pieces(run, max(1, min(PIECE, int(bandwidth / 50)))):
            await super().send_run(piece)
            await self._pace(piece.length, bandwidth)
        return None

    async def _pace(self, length: int, bandwidth: float) -> None:
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + length / bandwidth
        if self._due > now:
            await asyncio.sleep(self._due - now)


def _corrupted(byte: Run) -> Run:
    if isinstance(byte, FileRun):
        old = os.pread(byte.fd, 1, byte.offset)
    else:
        old = bytes(byte.view) if isinstance(byte, MemoryRun) else b"\0"
    return MemoryRun(memoryview(bytes([old[0] ^ 0xFF])))


def _run(run: DiskRun) -> Run:
    return ZeroRun(run.length) if run.fd is None else FileRun(run.fd, run.file_offset, run.length)


def _parse_export(name: str) -> tuple[str, str]:
    """UUID and session of `/<uuid>?session_id=<ref>`. Raises RefusedError."""
    try:
        url = urlsplit(name)
        return url.path.removeprefix("/"), parse_qs(url.query, strict_parsing=True)["session_id"][0]
    except (ValueError, KeyError):
        raise RefusedError("an export is named /<uuid>?session_id=<ref>") from None
