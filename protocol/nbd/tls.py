"""An export read in TLS, pinned to one certificate.

libnbd checks a certificate only against a host name and a list of authorities, and not at all for a socket it is
given; a pool's hosts show self-signed certificates that the pool itself tells us. So this much of NBD is spoken here:
STARTTLS, after which the certificate is compared byte by byte, EXPORT_NAME, and simple replies, which is all that
xapi-nbd knows. Nothing secret (the export's name) is sent before the comparison.

What is decrypted goes straight into the reader's buffer: handing libnbd the plain bytes through a pair of sockets took
a third longer.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from protocol.errors import NbdCertificateError
from protocol.nbd.wire import WireLostError, milliseconds

# https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE = 1
_OPT_EXPORT_NAME = 1
_OPT_STARTTLS = 5
_OPT_REPLY_MAGIC = 0x3E889045565A9
_REP_ACK = 1
_OPTION = struct.Struct(">8sII")
_OPT_REPLY = struct.Struct(">QIII")
# Size, flags, and the 124 zero bytes that nobody asked to leave out.
_OPENED = struct.Struct(">QH124x")

_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_READ, _DISCONNECT = 0, 2
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698

_HUNG_UP = "the server closed the connection"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class TlsWire:
    """A TLS socket past the handshake. See `protocol.nbd.wire.Wire`."""

    def __init__(self, tls: ssl.SSLSocket, size: int, patience: float) -> None:
        self.size = size
        self._tls = tls
        self._patience = patience
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(tls, select.POLLIN)
        self._writable.register(tls, select.POLLOUT)
        self._asked: dict[int, tuple[memoryview, Callable[[int], None]]] = {}
        self._next = 0
        self._head = memoryview(bytearray(_REPLY.size))
        self._cookie: int | None = None
        self._target = self._head
        tls.setblocking(False)

    def ask(self, view: memoryview, offset: int, answered: Callable[[int], None]) -> None:
        """Send a read."""
        if offset + len(view) > self.size:
            raise ValueError(f"the export has {self.size} bytes")
        cookie, self._next = self._next, self._next + 1
        self._asked[cookie] = view, answered
        self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, cookie, offset, len(view)))

    def advance(self, timeout: float) -> bool:
        """Deal with what has arrived."""
        if self._receive():
            return True
        if timeout <= 0 or not self._readable.poll(milliseconds(timeout)):
            return False
        self._receive()
        return True

    def close(self) -> None:
        """Close, politely if nothing is on its way."""
        if not self._asked:
            with contextlib.suppress(OSError, WireLostError):  # the server is gone already
                self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
                self._tls.unwrap()  # says that this is the end, and does not wait for an answer
        self._asked.clear()
        self._tls.close()

    def _receive(self) -> bool:
        """Take what is there, up to the end of one answer. False if that is nothing."""
        something = False
        try:
            while True:
                got = self._tls.recv_into(self._target)
                if not got:
                    raise WireLostError(_HUNG_UP)
                something = True
                self._target = self._target[got:]
                if not len(self._target) and self._step():
                    return True
        except ssl.SSLWantReadError:
            return something
        except OSError as error:
            raise WireLostError(_reason(error)) from None

    def _step(self) -> bool:
        """A head or the data after it is complete. True if that was the end of an answer."""
        errno = 0
        if self._cookie is None:
            magic, errno, cookie = _REPLY.unpack(self._head)
            if magic != _REPLY_MAGIC or cookie not in self._asked:
                raise WireLostError("the server's answer makes no sense")
            self._cookie = cookie
            if not errno:
                self._target = self._asked[cookie][0]
                return False
        _, answered = self._asked.pop(self._cookie)
        self._cookie, self._target = None, self._head
        answered(errno)
        return True

    def _send(self, data: bytes) -> None:
        """Send a request: a few dozen bytes, for which there is always room unless the server is stuck."""
        try:
            while data:
                try:
                    data = data[self._tls.send(data) :]
                except ssl.SSLWantWriteError:
                    if not self._writable.poll(milliseconds(self._patience)):
                        raise WireLostError(f"the server took no request in {self._patience:g} s") from None
        except OSError as error:
            raise WireLostError(_reason(error)) from None


def open_tls(
    sock: socket.socket, export: str, certificate: str, server: str, deadline: float, patience: float
) -> TlsWire:
    """Negotiate on a connected socket, which is ours from here on, until `deadline` (`time.monotonic`).

    `patience` is how many seconds the server may take to accept a request. Raises `NbdCertificateError` if its
    certificate is not the one in `certificate` (PEM), `WireLostError`, `TimeoutError`.
    """
    try:
        tls = secure(sock, certificate, server, deadline)
        try:
            name = export.encode()
            _allow(tls, deadline)
            tls.sendall(_OPTION.pack(b"IHAVEOPT", _OPT_EXPORT_NAME, len(name)) + name)
            size, _ = _OPENED.unpack(_exactly(tls, _OPENED.size, deadline))
            return TlsWire(tls, size, patience)
        except BaseException:
            tls.close()
            raise
    except TimeoutError:
        raise
    except (OSError, ValueError) as error:
        raise WireLostError(f"TLS failed: {_reason(error)}") from None


def secure(sock: socket.socket, certificate: str, server: str, deadline: float) -> ssl.SSLSocket:
    """The greeting, STARTTLS, TLS, and the comparison of the certificate. Raises as `open_tls`, and `OSError`."""
    expected = _der(certificate, server)
    greeting = _exactly(sock, 18, deadline)
    (flags,) = struct.unpack(">H", greeting[16:])
    if greeting[:16] != _GREETING or not flags & _FIXED_NEWSTYLE:
        raise WireLostError("this is no NBD server of the fixed newstyle")
    sock.sendall(struct.pack(">I", _FIXED_NEWSTYLE) + _OPTION.pack(b"IHAVEOPT", _OPT_STARTTLS, 0))
    magic, option, reply, length = _OPT_REPLY.unpack(_exactly(sock, _OPT_REPLY.size, deadline))
    if magic != _OPT_REPLY_MAGIC or option != _OPT_STARTTLS:
        raise WireLostError("the answer to STARTTLS makes no sense")
    if reply != _REP_ACK or length:
        raise WireLostError(f"the server refuses TLS (reply {reply:#x})")
    _allow(sock, deadline)
    tls = _context().wrap_socket(sock)
    if tls.getpeercert(binary_form=True) != expected:
        tls.close()
        raise NbdCertificateError(server, "the server's certificate is not the one the pool named")
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


def _allow(sock: socket.socket, deadline: float) -> None:
    """The next step of the handshake has until `deadline`. Raises `TimeoutError` where that has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes: one more would belong to TLS."""
    data = b""
    while len(data) < size:
        _allow(sock, deadline)
        piece = sock.recv(size - len(data))
        if not piece:
            raise WireLostError(_HUNG_UP)
        data += piece
    return data


def _reason(error: Exception) -> str:
    """The system's words without its numbers, or OpenSSL's."""
    return getattr(error, "strerror", None) or str(error)
