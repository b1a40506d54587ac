"""Where clients come in: a TCP port or a Unix socket, and a task per connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mover.errors import AddressError, UsageError
from mover.serve.export import Exports, Warn
from protocol.nbd.server import Export, Manners, SocketChannel, serve
from protocol.tasks import task_group

# Each client holds a block; programs that read over several connections use four or eight.
CONNECTIONS = 16
_BACKLOG = 64
# Seconds before the next try when a connection cannot be accepted.
_BREATH = 0.05


class TcpAddress(NamedTuple):
    """An address and a port; 0 takes any that is free."""

    host: str
    port: int

    def uri(self, export: str, *, tls: bool = False) -> str:
        """Of an export, as NBD clients write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'nbds' if tls else 'nbd'}://{host}:{self.port}/{quote(export, safe='')}"


class SocketAddress(NamedTuple):
    """The path of a Unix socket."""

    path: Path

    def uri(self, export: str, *, tls: bool = False) -> str:
        """Of an export, as NBD clients write it."""
        return f"{'nbds' if tls else 'nbd'}+unix:///{quote(export, safe='')}?socket={quote(str(self.path))}"


Address = TcpAddress | SocketAddress


@contextmanager
def listening(where: Address) -> Iterator[tuple[socket.socket, Address]]:
    """A listening socket, and where it really is. Raises `AddressError`."""
    match where:
        case TcpAddress():
            with _listen_tcp(where) as listener:
                yield listener, TcpAddress(where.host, listener.getsockname()[1])
        case SocketAddress():
            with _listen_unix(where.path) as listener:
                try:
                    yield listener, where
                finally:
                    with suppress(OSError):
                        where.path.unlink()


@dataclass(frozen=True)
class Service:
    """What those who connect get, in TLS if there is a `context`. They have `patience` seconds to name an export."""

    exports: Exports
    warn: Warn
    context: ssl.SSLContext | None = None
    patience: float = 30.0


async def serve_clients(listener: socket.socket, service: Service) -> None:
    """Serve whoever connects until cancelled; the connections are closed then."""
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    connected: set[asyncio.Task[None]] = set()
    async with task_group() as group:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # gone again, or no descriptor is free
                await asyncio.sleep(_BREATH)
                continue
            if len(connected) == CONNECTIONS:
                connection.close()
                service.warn(f"a client was turned away: {CONNECTIONS} connections are open already")
                continue
            task = group.create_task(_serve_one(connection, service))
            connected.add(task)
            task.add_done_callback(connected.discard)


async def _serve_one(connection: socket.socket, service: Service) -> None:
    try:
        # One that died without a word would keep its place for ever.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        channel = SocketChannel(connection)
    except OSError:
        return connection.close()
    manners = Manners("forced" if service.context else "none", exports=service.exports.listed())
    try:
        # Nobody is to keep a place without saying what it is for, least of all who could not.
        async with asyncio.timeout(service.patience) as deadline:

            def open_export(name: str) -> AbstractAsyncContextManager[Export]:
                deadline.reschedule(None)
                return service.exports.open(name)

            await serve(channel, manners, open_export, service.context)
    except ssl.SSLEOFError:
        pass
    except ssl.SSLError as error:
        service.warn(f"a client was turned away: {(error.reason or str(error)).replace('_', ' ').lower()}")
    except OSError:  # the client is gone, or has not said what it wants
        pass
    finally:
        channel.close()


def _listen_tcp(where: TcpAddress) -> socket.socket:
    if not 0 <= where.port < 1 << 16:
        raise UsageError(f"a port is a number from 0 to 65535, not {where.port}")
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    try:
        return socket.create_server((where.host, where.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        hint = "--port 0 takes any port that is free" if error.errno == errno.EADDRINUSE else ""
        raise AddressError(f"cannot listen on {where.host}, port {where.port}: {_reason(error)}", hint) from error


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # the disks are nobody else's business
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            path.unlink()
            listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        hint = "name a path that is not there yet" if error.errno == errno.EADDRINUSE else ""
        raise AddressError(f"cannot listen on {path}: {_reason(error)}", hint) from error
    finally:
        os.umask(before)
    return listener


def _is_left_behind(path: Path) -> bool:
    """Whether this is the socket of a process that is no more."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _reason(error: OSError) -> str:
    """uvloop and getaddrinfo fill the fields of an OSError differently; a path that is too long has no errno."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
