"""Knock at an NBD server without opening a disk: is somebody there, is a connection free, is it who the pool named?"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from protocol.errors import NbdConnectError
from protocol.nbd.connection import dial
from protocol.nbd.endpoint import Endpoint
from protocol.nbd.tls import secure
from protocol.nbd.wire import WireLostError
from protocol.tasks import interruptible

_GREETING = b"NBDMAGICIHAVEOPT"
_GREETING_LENGTH = len(_GREETING) + 2
# The client's flags, and the option that says good-bye.
_GOODBYE = struct.pack(">I", 1) + b"IHAVEOPT" + struct.pack(">II", 2, 0)


async def probe(endpoint: Endpoint, timeout: float = 10.0) -> None:
    """Connect, read the greeting, compare the certificate where there is one, and leave.

    No export is named, so the server attaches nothing; one of its connections is taken meanwhile. Raises
    `NbdConnectError` if nobody answers within `timeout` seconds or the server hangs up, which is what xapi-nbd does
    beyond 16 connections (xen-api ocaml/nbd/lib/consts.ml); `NbdCertificateError` for another certificate.
    """
    try:
        async with asyncio.timeout(timeout):
            if endpoint.certificate is None:
                await _plain(endpoint)
            else:
                await _secure(endpoint, endpoint.certificate, timeout)
    except TimeoutError:
        raise NbdConnectError(endpoint.server, f"no answer in {timeout:g} s") from None
    except OSError as error:
        raise NbdConnectError(endpoint.server, error.strerror or str(error)) from None


async def _plain(endpoint: Endpoint) -> None:
    reader, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
    try:
        greeting = await reader.readexactly(_GREETING_LENGTH)
        if not greeting.startswith(_GREETING):
            raise NbdConnectError(endpoint.server, "this is no NBD server of the fixed newstyle")
        writer.write(_GOODBYE)
        await writer.drain()
    except asyncio.IncompleteReadError:
        raise NbdConnectError(endpoint.server, "the server hung up at once: all its connections are in use") from None
    finally:
        writer.close()


async def _secure(endpoint: Endpoint, certificate: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with await dial(endpoint, timeout) as sock, sock.dup() as cut, ThreadPoolExecutor(1, "nbd-probe") as executor:

        def interrupt() -> None:
            with contextlib.suppress(OSError):  # not connected any more
                cut.shutdown(socket.SHUT_RDWR)

        def knock() -> None:
            secure(sock, certificate, endpoint.server, deadline).close()

        try:
            await interruptible(executor, interrupt, knock)
        except WireLostError as error:
            raise NbdConnectError(endpoint.server, str(error)) from None
