"""A raw HTTP server with the manners of XAPI's own.

The head of a request, request line included, is at most 1024 bytes (else 431); the handler with the longest matching
prefix is taken; an unknown path is 403, an unknown verb 501. What a handler fails with is written as a complete
`500` response wherever the stream happens to be, so after a `200` it lands inside the body (xen-api issue 4603).

Source: xen-api ocaml/libs/http-lib/http_svr.ml, ocaml/xapi/xapi_globs.ml, xapi_mgmt_iface.ml.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from mover.simulator.failure import Failure

HEAD_LIMIT = 1024
VERBS = frozenset({"GET", "POST", "PUT", "OPTIONS", "CONNECT"})
_log = logging.getLogger(__name__)
_READ = 1 << 20
_COPY = 1 << 20


class HangUpError(Exception):
    """The client went away, or the connection is to be cut now."""


@dataclass(frozen=True)
class Request:
    """The head of a request. Header names are lower case; `query` keeps the last of repeated keys."""

    verb: str
    path: str
    raw_query: str
    version: str
    headers: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def keep_alive(self) -> bool:
        return self.version == "HTTP/1.1" and self.headers.get("connection", "").lower() != "close"

    @property
    def content_length(self) -> int | None:
        text = self.headers.get("content-length", "")
        return int(text) if text.isdigit() else None


class Connection:
    """One client's connection, as a reader of bodies and a sender of responses.

    `read` and `readexactly` are those of asyncio.StreamReader; `write` and `sendfile` give back-pressure.
    `sent` counts bytes of the current response, `tap` may look at (and change, or raise at) what goes out.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ahead = b""
        self.tap: Callable[[int, bytes], Awaitable[bytes]] | None = None
        self.sent = 0

    # -- in ----------------------------------------------------------------------------------------------------------

    async def read_head(self) -> bytes | None:
        """The bytes up to and including the empty line; None at the end of the stream. Raises _HeadTooLongError."""
        while True:
            end = self._ahead.find(b"\r\n\r\n")
            if 0 <= end <= HEAD_LIMIT - 4:
                head, self._ahead = self._ahead[: end + 4], self._ahead[end + 4 :]
                return head
            if end >= 0 or len(self._ahead) >= HEAD_LIMIT:
                raise HeadTooLongError
            more = await self._receive()
            if not more:
                return None
            self._ahead += more

    async def read(self, n: int) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:n], self._ahead[n:]
            return data
        return await self._receive(n)

    async def readexactly(self, n: int) -> bytes:
        """Raises asyncio.IncompleteReadError at the end of the stream."""
        data, self._ahead = self._ahead[:n], self._ahead[n:]
        if len(data) == n:
            return data
        try:
            return data + await self._reader.readexactly(n - len(data))
        except asyncio.IncompleteReadError as error:
            raise asyncio.IncompleteReadError(data + error.partial, n) from None
        except (ConnectionError, ssl.SSLError) as error:
            raise HangUpError(str(error)) from None

    async def _receive(self, n: int = _READ) -> bytes:
        try:
            return await self._reader.read(n)
        except (ConnectionError, ssl.SSLError) as error:
            raise HangUpError(str(error)) from None

    # -- out ---------------------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises HangUpError when the client is gone."""
        if self.tap is not None:
            data = await self.tap(self.sent, data)
        try:
            self._writer.write(data)
            self.sent += len(data)
            await self._writer.drain()
        except (ConnectionError, ssl.SSLError) as error:
            raise HangUpError(str(error)) from None

    async def sendfile(self, fd: int, offset: int, length: int) -> None:
        """Send a range of an open file; by the kernel where the connection is plain and the loop can."""
        if (
            self.tap is None
            and self._writer.get_extra_info("ssl_object") is None
            and await self._splice(fd, offset, length)
        ):
            self.sent += length
            return
        end = offset + length
        while offset < end:
            data = os.pread(fd, min(_COPY, end - offset), offset)
            if not data:
                raise Failure("VDI_IO_ERROR", "Device I/O errors")
            await self.write(data)
            offset += len(data)

    async def _splice(self, fd: int, offset: int, length: int) -> bool:
        loop = asyncio.get_running_loop()
        try:
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
                await loop.sendfile(self._writer.transport, file, offset, length)
        except NotImplementedError:
            return False
        except (ConnectionError, RuntimeError) as error:
            raise HangUpError(str(error)) from None
        return True

    async def flush(self) -> None:
        try:
            await self._writer.drain()
        except (ConnectionError, ssl.SSLError) as error:
            raise HangUpError(str(error)) from None

    async def close(self) -> None:
        """Send what is buffered and close. After TLS this sends close_notify."""
        try:
            if self._writer.can_write_eof():
                self._writer.write_eof()
            self._writer.close()
            await self._writer.wait_closed()
        except (ConnectionError, ssl.SSLError, OSError):
            pass

    def abort(self) -> None:
        """Cut the connection without goodbye."""
        self._writer.transport.abort()


class HeadTooLongError(Exception):
    """The request's head does not fit."""


Handler = Callable[[Request, Connection], Awaitable[bool]]


class Routes:
    """Handlers by verb and path prefix; each returns whether the connection goes on."""

    def __init__(self) -> None:
        self._handlers: dict[str, dict[str, Handler]] = {}

    def add(self, verb: str, prefix: str, handler: Handler) -> None:
        self._handlers.setdefault(verb, {})[prefix] = handler

    def find(self, verb: str, path: str) -> Handler | None:
        """The handler with the longest prefix of `path`."""
        candidates = self._handlers.get(verb, {})
        best = max((prefix for prefix in candidates if path.startswith(prefix)), key=len, default=None)
        return candidates[best] if best is not None else None


def parse_head(head: bytes) -> Request:
    """Read a request's head. Raises ValueError."""
    lines = head.decode("latin-1").split("\r\n")
    verb, target, version = lines[0].split(" ")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip().lower()] = value.strip()
    url = urlsplit(target)
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";") if pair.strip())
    cookies = {name: unquote(value) for name, _, value in pairs}
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    return Request(verb, unquote(url.path), url.query, version, headers, query, cookies)


async def serve_connection(routes: Routes, connection: Connection, head_timeout: float) -> None:
    """Answer requests until either side has enough. Never raises but for cancellation."""
    try:
        while await _serve_one(routes, connection, head_timeout):
            connection.sent = 0
        await connection.close()
    except (HangUpError, asyncio.IncompleteReadError):
        connection.abort()


async def _serve_one(routes: Routes, connection: Connection, head_timeout: float) -> bool:
    try:
        async with asyncio.timeout(head_timeout):
            head = await connection.read_head()
    except HeadTooLongError:
        await respond(connection, "431 Request Header Fields Too Large", page("Request header fields too large"))
        return False
    except TimeoutError:
        await respond(connection, "408 Request Timeout", page("Request timeout"))
        return False
    if head is None:
        return False
    try:
        request = parse_head(head)
    except ValueError:
        await respond(connection, "400 Bad Request", page("Bad request"))
        return False
    return await _handle(routes, request, connection)


async def _handle(routes: Routes, request: Request, connection: Connection) -> bool:
    if request.verb not in VERBS:
        await respond(connection, "501 Method Not Implemented", page("Method not implemented"))
        return False
    handler = routes.find(request.verb, request.path)
    if handler is None:
        await respond(connection, "403 Forbidden", page("Forbidden: access denied"))
        return False
    try:
        return await handler(request, connection)
    except Failure as failure:
        await respond_error(connection, failure.text())
    except (HangUpError, asyncio.IncompleteReadError):
        raise
    except Exception as error:  # noqa: BLE001 - as the servers do
        _log.exception("%s %s", request.verb, request.path)
        await respond_error(connection, Failure("INTERNAL_ERROR", type(error).__name__).text())
    return False


def page(message: str) -> bytes:
    return f"<html><body><h1>{message}</h1></body></html>".encode()


async def respond(
    connection: Connection,
    status: str,
    body: bytes = b"",
    *,
    version: str = "HTTP/1.1",
    headers: dict[str, str] | None = None,
    keep_alive: bool = False,
    content_type: str = "text/html",
) -> None:
    """Write one complete response."""
    fields = {
        "content-length": str(len(body)),
        "content-type": content_type,
        "connection": "keep-alive" if keep_alive else "close",
        "cache-control": "no-cache, no-store",
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    await connection.write(f"{version} {status}\r\n{lines}\r\n".encode("latin-1") + body)


async def respond_error(connection: Connection, text: str) -> None:
    """The generic `500`, into whatever has been sent before."""
    body = (
        "<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; "
        "please wait a while and try again. If the problem persists, please contact your support representative."
        f"<h1> Additional information </h1>{text}</body></html>"
    ).encode()
    head = (
        f"HTTP/1.1 500 Internal Error\r\ncontent-length: {len(body)}\r\ncontent-type:text/html\r\n"
        "connection:close\r\ncache-control:no-cache, no-store\r\n\r\n"
    )
    await connection.write(head.encode() + body)
