"""One NBD connection: a libnbd handle driven by the running event loop.

**A buffer outlives its command.** Whoever stops waiting for a read has not stopped libnbd from filling the buffer when
the answer comes. The rule here: libnbd touches a buffer only inside `aio_notify_*`, these are called only by
`Connection`, and a read that is abandoned (cancelled or timed out) closes the connection before the exception leaves
`read_into`. So when `read_into` has returned or raised, its buffer is quiet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import nbd

from protocol.errors import NbdConnectError, NbdError, NbdRequestError, NbdTimeoutError
from protocol.nbd.endpoint import Endpoint, Timeouts
from protocol.nbd.tls import Relay

_EINVAL = 22
_LOST = -1


class Connection:
    """Reads from one export. Made by `connect`; use it as an async context manager or call `close`.

    `size` is the export's in bytes, `bytes_read` and `requests` count what was answered.
    """

    def __init__(self, endpoint: Endpoint, handle: nbd.NBD, request_timeout: float, relay: Relay | None) -> None:
        self.endpoint = endpoint
        self.size = 0
        self.bytes_read = 0
        self.requests = 0
        self._loop = asyncio.get_running_loop()
        self._handle: nbd.NBD | None = handle
        self._fd = handle.aio_get_fd()
        self._direction = 0
        self._timeout = request_timeout
        self._relay = relay
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._pending: set[asyncio.Future[tuple[int, float]]] = set()
        self._answered = 0.0
        self._error: NbdError | None = None
        self._watch()

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, for whatever reason."""
        return self._handle is None

    @property
    def error(self) -> NbdError | None:
        """What ended the connection; None while it is open."""
        return self._error

    @property
    def in_flight(self) -> int:
        """The number of reads that wait for their answer."""
        return len(self._pending)

    async def negotiated(self) -> None:
        """Wait for the end of the handshake. Raises `NbdConnectError`."""
        try:
            await self._ready
        except NbdError as error:
            raise NbdConnectError(error.server, error.reason) from None
        if self._handle is None:
            raise NbdConnectError(self.endpoint.server, "the connection was closed")
        self.size = self._handle.get_size()

    async def read_into(self, view: memoryview, offset: int) -> float:
        """Fill `view` with the bytes at `offset`.

        Returns the service time in seconds: from when the server could begin (the request was sent and the one before
        it answered) until the answer was here.

        Raises `NbdRequestError` if the server answers with an error, `NbdTimeoutError` if it does not answer in time,
        `NbdError` if the connection is lost. After a time-out, and if the task is cancelled here, the connection is
        closed.
        """
        if self._handle is None:
            raise self._error or NbdError(self.endpoint.server, "the connection was closed")
        future: asyncio.Future[tuple[int, float]] = self._loop.create_future()
        try:
            self._handle.aio_pread(view, offset, self._completion(future))
        except nbd.Error as error:
            raise self._refused(error, offset) from None
        self._pending.add(future)
        self._watch()
        try:
            async with asyncio.timeout(self._timeout):
                errno, service = await future
        except TimeoutError:
            timeout = NbdTimeoutError(
                self.endpoint.server, f"no answer to a read at byte {offset} in {self._timeout:g} s"
            )
            self.abort(timeout)
            raise timeout from None
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                self.abort(NbdError(self.endpoint.server, "closed because a read was cancelled"))
            raise
        finally:
            self._pending.discard(future)
        if errno:
            # After an error reply some servers hang up; a lost connection fails its reads with an errno, too.
            raise self._error or NbdRequestError(
                self.endpoint.server, f"error {errno} reading {len(view)} bytes at byte {offset}", errno
            )
        self.bytes_read += len(view)
        self.requests += 1
        return service

    def _completion(self, future: asyncio.Future[tuple[int, float]]) -> Callable[[nbd.ErrorCode], int]:
        """What libnbd calls when the command is over: note the errno and the service time, and retire it (1)."""
        submitted = time.perf_counter()

        def complete(error: nbd.ErrorCode) -> int:
            now = time.perf_counter()
            if not future.done():
                future.set_result((error.value, now - max(submitted, self._answered)))
            self._answered = now
            return 1

        return complete

    def _refused(self, error: nbd.Error, offset: int) -> NbdError:
        """libnbd refuses, without asking the server, what lies out of bounds, and everything on a dead connection."""
        reason = self.endpoint.scrub(f"{error.string} (read at byte {offset})")
        if error.errnum == _EINVAL and self._handle is not None and not self._handle.aio_is_dead():
            return NbdRequestError(self.endpoint.server, reason, error.errnum)
        lost = NbdError(self.endpoint.server, reason)
        self.abort(lost)
        return lost

    def abort(self, error: NbdError) -> None:
        """Close at once. Reads in flight fail with `error`; their buffers are not touched any more."""
        if self._handle is None:
            return
        self._error = error
        self._listen(0)
        self._handle = None  # the only reference: this runs nbd_close, which closes the socket
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody may be waiting for it
        for future in self._pending:
            if not future.done():
                future.set_result((_LOST, 0.0))
        if self._relay is not None:
            self._relay.close()

    def close(self) -> None:
        """Say good-bye to the server, if nothing is in flight, and close."""
        if self._handle is not None and not self._pending and self._ready.done():
            with contextlib.suppress(nbd.Error):  # dead already
                self._handle.aio_disconnect()
        self.abort(NbdError(self.endpoint.server, "the connection was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_readable(self) -> None:
        self._advance(nbd.NBD.aio_notify_read)

    def _on_writable(self) -> None:
        self._advance(nbd.NBD.aio_notify_write)

    def _advance(self, notify: Callable[[nbd.NBD], None]) -> None:
        if self._handle is None:
            return
        try:
            notify(self._handle)
        except nbd.Error as error:
            self.abort(NbdError(self.endpoint.server, self.endpoint.scrub(error.string)))
            return
        self._watch()

    def _watch(self) -> None:
        """Follow libnbd's state: what it waits for, whether it is ready, whether it is dead."""
        handle = self._handle
        if handle is None:
            return
        direction = handle.aio_get_direction()
        if handle.aio_is_dead() or handle.aio_is_closed() or not direction:
            del handle
            self.abort(NbdError(self.endpoint.server, "the server closed the connection"))
            return
        if not self._ready.done() and handle.aio_is_ready():
            self._ready.set_result(None)
        self._listen(direction)

    def _listen(self, direction: int) -> None:
        changed = direction ^ self._direction
        self._direction = direction
        if changed & nbd.AIO_DIRECTION_READ:
            if direction & nbd.AIO_DIRECTION_READ:
                self._loop.add_reader(self._fd, self._on_readable)
            else:
                self._loop.remove_reader(self._fd)
        if changed & nbd.AIO_DIRECTION_WRITE:
            if direction & nbd.AIO_DIRECTION_WRITE:
                self._loop.add_writer(self._fd, self._on_writable)
            else:
                self._loop.remove_writer(self._fd)


async def connect(endpoint: Endpoint, timeouts: Timeouts) -> Connection:
    """Connect and negotiate, over TLS if the endpoint names a certificate.

    Raises `NbdCertificateError` if the server shows another certificate, `NbdConnectError` for everything else.
    """
    sock = await _dial(endpoint, timeouts.connect)
    relay: Relay | None = None
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeouts.handshake):
            if endpoint.certificate is not None:
                relay = Relay(sock, endpoint.certificate, endpoint.server)
                sock = await relay.secured()
            handle = nbd.NBD()
            handle.set_export_name(endpoint.export.reveal())
            # The server has no use for them, and offering them costs a round trip.
            handle.set_request_structured_replies(False)
            # Only buffers of reads that succeeded are looked at.
            handle.set_pread_initialize(False)
            handle.aio_connect_socket(sock.detach())
            connection = Connection(endpoint, handle, timeouts.request, relay)
            del handle
            await connection.negotiated()
            return connection
    except BaseException as error:
        if connection is not None:
            connection.abort(NbdError(endpoint.server, "the handshake failed"))
        if relay is not None:
            relay.close()
        sock.close()
        if isinstance(error, TimeoutError):
            reason = f"no answer to the handshake in {timeouts.handshake:g} s"
            raise NbdConnectError(endpoint.server, reason) from None
        if isinstance(error, nbd.Error):
            raise NbdConnectError(endpoint.server, endpoint.scrub(error.string)) from None
        if isinstance(error, OSError):
            raise NbdConnectError(endpoint.server, _reason(error)) from None
        raise


async def _dial(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connected, non-blocking TCP socket."""
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            family, kind, proto, address = await _resolve(endpoint.address, endpoint.port)
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            return sock
    except TimeoutError:
        reason = f"no answer in {timeout:g} s"
    except OSError as error:
        reason = _reason(error)
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    if sock is not None:
        sock.close()
    raise NbdConnectError(endpoint.server, reason)


async def _resolve(host: str, port: int) -> tuple[int, int, int, tuple[str | int | bytes, ...]]:
    """Family, type, protocol and socket address of a host. Pools name addresses, which need no resolver to wait for."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, proto, _, address = found[0]
    return family, kind, proto, address


def _reason(error: OSError) -> str:
    """The system's words: asyncio's own hide the cause."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
