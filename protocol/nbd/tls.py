"""TLS in front of libnbd, pinned to one certificate.

libnbd checks a certificate only against a host name and a list of authorities, and not at all for a socket it is
given; a pool's hosts show self-signed certificates that the pool itself tells us. So the NBD greeting, STARTTLS and
TLS are spoken here, the certificate is compared byte by byte, and only then does libnbd get one end of a socket pair,
with the greeting replayed: it believes that it talks to a plain server. Nothing secret (the export's name) is sent
before the comparison.

A thread of its own carries the bytes. OpenSSL and the socket calls release the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import ssl
import struct
import threading

from protocol.errors import NbdCertificateError, NbdConnectError, NbdError

# https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE = 1
_OPT_STARTTLS = 5
_OPT_REPLY_MAGIC = 0x3E889045565A9
_REP_ACK = 1
_OPT_REPLY = struct.Struct(">QIII")

# Large enough that the plain bytes move in few system calls, small enough to stay in the cache on the way.
_CHUNK = 512 << 10
# How long `close` waits, in seconds, for a request that stands in the way of ending politely.
_GOODBYE = 0.1
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Relay:
    """Carries one connection between a TLS server and libnbd. `sock` is connected TCP, and ours from here on.

    `close` ends the thread and waits for it: it never sleeps where closing the sockets would not wake it.
    """

    def __init__(self, sock: socket.socket, certificate: str, server: str) -> None:
        self._server = server
        self._expected = _der(certificate, server)
        self._loop = asyncio.get_running_loop()
        self._secured: asyncio.Future[None] = self._loop.create_future()
        self._tcp = sock
        self._tcp.setblocking(True)
        self._cut = sock.dup()  # TLS takes the socket itself over; this one can still shut the connection down
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _CHUNK)
        self._thread = threading.Thread(target=self._run, name=f"nbd-tls {server}", daemon=True)
        self._thread.start()

    async def secured(self) -> socket.socket:
        """Wait for TLS, and return the socket to give to libnbd.

        Raises `NbdCertificateError` if the certificate is not the expected one, `NbdConnectError` otherwise.
        """
        await self._secured
        return self._near

    def close(self) -> None:
        """Close everything and wait for the thread."""
        self._near.close()
        if self._secured.done() and not self._secured.cancelled():
            # libnbd has closed its end: let its good-bye through.
            self._thread.join(_GOODBYE)
        for sock in (self._cut, self._far):
            with contextlib.suppress(OSError):  # not connected any more
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in (self._cut, self._far, self._tcp):
            sock.close()

    def _run(self) -> None:
        error: NbdError | None = None
        tls: ssl.SSLSocket | None = None
        try:
            tls = self._secure()
        except NbdError as refused:
            error = refused
        except (OSError, ValueError) as failed:
            error = NbdConnectError(self._server, f"TLS failed: {failed}")
        self._loop.call_soon_threadsafe(self._report, error)
        if tls is not None:
            with tls, contextlib.suppress(OSError):  # one side is gone; the other hears of it now
                # libnbd hears the same greeting, less what was not agreed on, and its answer stops here: the server
                # has had it.
                self._far.sendall(_GREETING + struct.pack(">H", _FIXED_NEWSTYLE))
                _receive(self._far, 4)
                _pump(tls, self._far)
                tls.unwrap()  # says that this is the end, and does not wait for an answer
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)

    def _report(self, error: NbdError | None) -> None:
        if self._secured.done():
            return
        if error is None:
            self._secured.set_result(None)
        else:
            self._secured.set_exception(error)

    def _secure(self) -> ssl.SSLSocket:
        greeting = _receive(self._tcp, 18)
        (flags,) = struct.unpack(">H", greeting[16:])
        if greeting[:16] != _GREETING or not flags & _FIXED_NEWSTYLE:
            raise NbdConnectError(self._server, "this is no NBD server of the fixed newstyle")
        self._tcp.sendall(struct.pack(">I", _FIXED_NEWSTYLE) + b"IHAVEOPT" + struct.pack(">II", _OPT_STARTTLS, 0))
        magic, option, reply, length = _OPT_REPLY.unpack(_receive(self._tcp, _OPT_REPLY.size))
        if magic != _OPT_REPLY_MAGIC or option != _OPT_STARTTLS:
            raise NbdConnectError(self._server, "the answer to STARTTLS makes no sense")
        if reply != _REP_ACK or length:
            raise NbdConnectError(self._server, f"the server refuses TLS (reply {reply:#x})")
        tls = _context().wrap_socket(self._tcp)
        if tls.getpeercert(binary_form=True) != self._expected:
            tls.close()
            raise NbdCertificateError(self._server, "the server's certificate is not the one the pool named")
        return tls


def _context() -> ssl.SSLContext:
    """TLS that trusts nobody by name: the certificate is compared as a whole afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _der(pem: str, server: str) -> bytes:
    """The first certificate of a PEM text, which is the host's own."""
    found = _PEM.search(pem)
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0]) if found else b""
    except ValueError:
        der = b""
    if not der:
        raise NbdCertificateError(server, "the pool named no readable certificate to compare with")
    return der


def _receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes: one more would belong to TLS."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the server closed the connection")
        data += piece
    return data


def _pump(tls: ssl.SSLSocket, far: socket.socket) -> None:
    """Move bytes both ways until one side ends.

    Requests are a few dozen bytes, so only the way down is made to be fast. Sending down may block: libnbd's requests
    wait meanwhile, but they fit into the socket pair's buffer, so libnbd goes on reading.
    """
    tls.setblocking(False)
    buffer = memoryview(bytearray(_CHUNK))
    poll = select.poll()
    poll.register(tls, select.POLLIN)
    poll.register(far, select.POLLIN)
    up = far.fileno()
    while True:
        ready = {fd for fd, _ in poll.poll(0 if tls.pending() else None)}
        if up in ready:
            request = far.recv(_CHUNK)
            if not request:
                return
            _send(tls, far, request)
        filled = 0
        ended = False
        while filled < _CHUNK:
            try:
                got = tls.recv_into(buffer[filled:])
            except ssl.SSLWantReadError:
                break
            if not got:
                ended = True
                break
            filled += got
        if filled:
            far.sendall(buffer[:filled])
        if ended:
            return


def _send(tls: ssl.SSLSocket, far: socket.socket, data: bytes) -> None:
    """Send all of `data`; give up when libnbd's side hangs up meanwhile."""
    poll = select.poll()
    poll.register(tls, select.POLLOUT)
    poll.register(far, 0)
    while data:
        try:
            data = data[tls.send(data) :]
        except ssl.SSLWantWriteError:
            if any(fd == far.fileno() for fd, _ in poll.poll()):
                return
