"""A small S3 server with faults, for what a real one does once in a year: lost answers, refusals, ignored conditions.

It checks no signatures and keeps objects in memory. What a client can rest on is tested before a real server.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mover.store import S3Access
from mover.store.s3 import S3Backend
from protocol.secret import Secret

# What becomes of a request: done and the answer lost; neither done nor answered; refused for now; refused for good.
Fate = Literal["unanswered", "lost", "busy", "forbidden", ""]


@dataclass
class FaultyServer:
    """`fate` decides about each request by its method and key. `seen` are all requests."""

    objects: dict[str, bytes] = field(default_factory=dict)
    fate: Callable[[str, str], Fate] = lambda method, key: ""
    heeds_conditions: bool = True
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    def backend(self, retry_for: float = 20.0) -> S3Backend:
        access = S3Access(f"http://127.0.0.1:{self.port}", "us-east-1", "key", Secret("secret"), retry_for=retry_for)
        return S3Backend("bucket", "store", access)


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def _take(self) -> None:
            url = urlsplit(self.path)
            key = unquote(url.path).removeprefix("/bucket").removeprefix("/store/").strip("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.seen.append((self.command, key))
            fate = server.fate(self.command, key)
            if fate == "lost":
                self.close_connection = True
            elif fate == "busy":
                self._answer(503, b"<Error><Code>SlowDown</Code><Message>Ask less often.</Message></Error>")
            elif fate == "forbidden":
                self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>")
            else:
                status, data = self._do(key, parse_qs(url.query), body)
                if fate == "unanswered":
                    self.close_connection = True
                else:
                    self._answer(status, data)

        do_GET = do_PUT = do_DELETE = do_HEAD = _take

        def _do(self, key: str, query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
            with server.lock:
                if self.command == "PUT":
                    if key in server.objects and self.headers.get("If-None-Match") and server.heeds_conditions:
                        return 412, b"<Error><Code>PreconditionFailed</Code><Message>It exists.</Message></Error>"
                    server.objects[key] = body
                    return 200, b""
                if self.command == "DELETE":
                    server.objects.pop(key, None)
                    return 204, b""
                if "list-type" in query:
                    return 200, self._list(query.get("prefix", [""])[0], query.get("start-after", [""])[0])
                if key not in server.objects:
                    return 404, b"<Error><Code>NoSuchKey</Code><Message>It is not there.</Message></Error>"
                return self._part(server.objects[key])

        def _part(self, data: bytes) -> tuple[int, bytes]:
            wanted = self.headers.get("Range")
            if wanted is None:
                return 200, data
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            if not part:
                return 416, b"<Error><Code>InvalidRange</Code><Message>It ends before that.</Message></Error>"
            self.range = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return 206, part

        def _list(self, prefix: str, after: str) -> bytes:
            items = "".join(
                f"<Contents><Key>store/{escape(key)}</Key><Size>{len(data)}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag></Contents>"
                for key, data in sorted(server.objects.items())
                if f"store/{key}".startswith(prefix) and f"store/{key}" > after
            )
            head = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><IsTruncated>false</IsTruncated>'
            return f"{head}{items}</ListBucketResult>".encode()

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"x"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if status == 206:
                self.send_header("Content-Range", self.range)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def private_authority(folder: Path) -> tuple[ssl.SSLContext, bytes]:
    """A server's context, and the certificate of the authority that vouches for it, which no system knows."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    pem = b""
    for key, name, issued in zip(keys, names, (False, True), strict=True):
        start = datetime.now(UTC) - timedelta(days=1)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(start)
        made = made.not_valid_after(start + timedelta(days=30))
        made = made.add_extension(x509.BasicConstraints(ca=not issued, path_length=None), critical=True)
        made = made.add_extension(address, critical=False) if issued else made
        pem = made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{issued}.pem").write_bytes(pem)
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context, (folder / "False.pem").read_bytes()


@contextmanager
def faulty_server(context: ssl.SSLContext | None = None) -> Iterator[FaultyServer]:
    """A server for as long as the block lasts; with a `context` it speaks TLS."""
    server = FaultyServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    if context is not None:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    http.daemon_threads = True
    # Who hangs up during the handshake is meant to.
    http.handle_error = lambda request, address: None  # type: ignore[method-assign]
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
