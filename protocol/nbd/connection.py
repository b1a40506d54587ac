"""One NBD connection, for one thread at a time.

**A buffer outlives its command.** Whoever stops waiting for a read has not stopped the answer from coming. The rule
here: a buffer is touched only inside `wait`, by the thread that called it, and a connection with an abandoned read is
never used again. So a thread that has left `wait` for good may reuse all its buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from concurrent.futures import Executor
from types import TracebackType
from typing import NamedTuple, Self

from protocol.errors import NbdConnectError, NbdError, NbdRequestError, NbdTimeoutError
from protocol.nbd.endpoint import Endpoint, Timeouts
from protocol.nbd.plain import open_plain
from protocol.nbd.tls import open_tls
from protocol.nbd.wire import Wire, WireLostError
from protocol.tasks import interruptible


class Read:
    """A read that was asked for. `errno` is None until it is answered; `refused` says why it was not even sent."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self.refused = ""
        self.view = view
        self.offset = offset
        self.asked = time.perf_counter()
        self.errno: int | None = None


class Service(NamedTuple):
    """How long the server took for a read, in seconds.

    From when it could begin (the request was sent and the one before it answered) until the answer was here. If that is
    not `exact`, it was no longer: nobody looked when the answer came. `waited`: the answer was not all there already.
    """

    seconds: float
    exact: bool
    waited: bool


class Connection:
    """Reads from one export. Made by `connect`; use it as a context manager or call `close`.

    `size` is the export's in bytes. All but `abort` is for one thread at a time.
    """

    def __init__(self, endpoint: Endpoint, wire: Wire, cut: socket.socket, request_timeout: float) -> None:
        self.endpoint = endpoint
        self.size = wire.size
        self.in_flight = 0
        self._wire = wire
        self._cut = cut
        self._timeout = request_timeout
        self._error: NbdError | None = None
        # When the last answer was here, and whether that is exactly known.
        self._answered = 0.0
        self._exact = True

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, for whatever reason."""
        return self._error is not None

    @property
    def error(self) -> NbdError | None:
        """What ended the connection; None while it is open."""
        return self._error

    def submit(self, view: memoryview, offset: int) -> Read:
        """Ask for the bytes at `offset`; waiting for the result fills `view`.

        If the export does not have them, or the connection is lost, `wait` will tell.
        """
        read = Read(view, offset)

        def answered(number: int) -> None:
            read.errno = number
            self.in_flight -= 1

        self.in_flight += 1
        try:
            self._wire.ask(view, offset, answered)
        except ValueError as error:
            answered(errno.EINVAL)
            read.refused = self.endpoint.scrub(f"{error} (read at byte {offset})")
        except WireLostError as error:
            self._lost(error)
        return read

    def wait(self, read: Read) -> Service:
        """Block until `read` is answered.

        Raises `NbdRequestError` if the server answers with an error, `NbdTimeoutError` if it does not answer in time,
        `NbdError` if the connection is lost. After the last two, the connection is of no use any more.
        """
        waited = self._until_answered(read)
        now = time.perf_counter()
        # When the answer before this one came is known if somebody waited for it.
        began = max(read.asked, self._answered) if self._exact else read.asked
        service = Service(now - began, waited and (self._exact or read.asked > self._answered), waited)
        self._answered, self._exact = now, waited
        if read.errno:
            self._check()  # what was in flight on a connection that is lost has an errno, too
            reason = read.refused or f"error {read.errno} reading {len(read.view)} bytes at byte {read.offset}"
            raise NbdRequestError(self.endpoint.server, reason, read.errno)
        return service

    def _until_answered(self, read: Read) -> bool:
        """Advance until `read` is answered. True if that took waiting, so that the answer came just now."""
        waited = False
        deadline = time.monotonic() + self._timeout
        try:
            while read.errno is None:
                self._check()
                if self._wire.advance(0.0):
                    continue
                waited = True
                if not self._wire.advance(max(0.0, deadline - time.monotonic())) and read.errno is None:
                    reason = f"no answer to a read at byte {read.offset} in {self._timeout:g} s"
                    timeout = NbdTimeoutError(self.endpoint.server, reason)
                    self.abort(timeout)
                    raise self._error or timeout
        except WireLostError as error:
            raise self._lost(error) from None
        return waited

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _lost(self, error: WireLostError) -> NbdError:
        self.abort(NbdError(self.endpoint.server, self.endpoint.scrub(str(error))))
        assert self._error is not None
        return self._error

    def abort(self, error: NbdError) -> None:
        """End it at once, from any thread: a thread in `wait` leaves it soon, with the first error that was given."""
        if self._error is None:
            self._error = error
        with contextlib.suppress(OSError):  # not connected any more
            self._cut.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say good-bye to the server, if nothing is in flight, and close. No thread may be in `wait`."""
        if self._error is None:
            self._error = NbdError(self.endpoint.server, "the connection was closed")
        self._wire.close()
        self._cut.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def connect(endpoint: Endpoint, timeouts: Timeouts, executor: Executor) -> Connection:
    """Connect and negotiate, over TLS if the endpoint names a certificate; a thread of `executor` is held meanwhile.

    Raises `NbdCertificateError` if the server shows another certificate, `NbdConnectError` for everything else.
    """
    sock = await dial(endpoint, timeouts.connect)
    cut = sock.dup()  # shuts the connection down whoever has it then

    def interrupt() -> None:
        with contextlib.suppress(OSError):  # not connected any more
            cut.shutdown(socket.SHUT_RDWR)

    try:
        wire = await interruptible(executor, interrupt, _negotiate, sock, endpoint, timeouts)
        return Connection(endpoint, wire, cut, timeouts.request)
    except BaseException:
        cut.close()
        raise


def _negotiate(sock: socket.socket, endpoint: Endpoint, timeouts: Timeouts) -> Wire:
    deadline = time.monotonic() + timeouts.handshake
    export = endpoint.export.reveal()
    with sock:
        try:
            if endpoint.certificate is None:
                return open_plain(sock, export, deadline)
            return open_tls(sock, export, endpoint.certificate, endpoint.server, deadline, timeouts.request)
        except TimeoutError:
            reason = f"no answer to the handshake in {timeouts.handshake:g} s"
            raise NbdConnectError(endpoint.server, reason) from None
        except WireLostError as error:
            raise NbdConnectError(endpoint.server, endpoint.scrub(str(error))) from None


async def dial(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connected, non-blocking TCP socket. Raises `NbdConnectError`."""
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
