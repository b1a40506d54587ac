"""One request to a host's data handlers, up to the head of its response.

Redirects are followed by hand, because the session is in the query: only to hosts of the pool, over TLS, and only to
a certificate that is pinned or vouched for. No error made here shows a query.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from yarl import URL

from protocol.errors import PoolCertificateError, ProtocolError, TransferError
from protocol.secret import Secret
from protocol.xapi.address import Address
from protocol.xapi.session import Pool
from protocol.xapi.upload import Upload
from protocol.xapi.wire import failure_in_text

# Measured: with aiohttp's 64 KiB a stream gives 0.5 GB/s for a whole core, with 1 MiB 3.9 GB/s for a seventh of one.
READ_AHEAD = 1 << 20
# xapi refuses longer request heads (max_header_length_tcp in ocaml/xapi/xapi_globs.ml).
MAX_HEAD = 1024
_REST_OF_HEAD = 200
_MAX_HOPS = 3
_MAX_PAGE = 1 << 16
_CONNECT = 30.0


class HttpClient:
    """Sends requests with the pool's session. `inactivity` in seconds is the longest silence of a download."""

    def __init__(self, pool: Pool, http: aiohttp.ClientSession, inactivity: float) -> None:
        self.inactivity = inactivity
        self._pool = pool
        self._http = http

    @asynccontextmanager
    async def request(
        self, verb: str, path: str, query: Mapping[str, str], task: str, what: str, upload: Upload | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request for `task` and give the response with a status of 2xx; it is closed at the end.

        `what` names the transfer in errors. Raises XapiError with the server's code if it says one, TransferError,
        PoolCertificateError.
        """
        address, session, renewed = self._pool.address, self._pool.session_ref, False
        for _ in range(_MAX_HOPS):
            response = await self._send(verb, address, path, query, task, session, what, upload)
            try:
                if 200 <= response.status < 300:
                    yield response
                    return
                if upload is not None and upload.started:
                    raise await _refusal(response, what, path)
                if response.status == 401 and not renewed:
                    session, renewed = await self._pool.renewed_session(session), True
                elif response.status in (301, 302, 303, 307, 308):
                    address = _redirected(address, response.headers.get("Location", ""), what)
                else:
                    raise await _refusal(response, what, path)
            finally:
                response.close()
        raise TransferError(what, "hosts redirect to each other")

    async def _send(
        self,
        verb: str,
        address: Address,
        path: str,
        query: Mapping[str, str],
        task: str,
        session: Secret,
        what: str,
        upload: Upload | None,
    ) -> aiohttp.ClientResponse:
        full = {"session_id": session.reveal(), "task_id": task, **query}
        text = urlencode(full, quote_via=quote, safe=":")
        if len(path) + len(text) + len(address.netloc) + _REST_OF_HEAD > MAX_HEAD:
            raise TransferError(what, f"the request's head would be longer than {MAX_HEAD} bytes")
        url = URL.build(
            scheme=address.scheme, host=address.host, port=address.port, path=path, query_string=text, encoded=True
        )
        headers = {"User-Agent": "mover", "Accept-Encoding": "identity"}
        if upload is not None:
            headers["Content-Length"] = str(upload.length)
        # While a body goes out, silence is normal: `Upload` keeps the time itself.
        silence = self.inactivity if upload is None else None
        trust = await self._pool.trust_for(address.host)
        try:
            return await self._http.request(
                verb,
                url,
                data=upload,
                headers=headers,
                ssl=trust.for_aiohttp(address.host) if address.secure else True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence),
            )
        except (aiohttp.ClientError, OSError) as error:
            raise connection_error(error, address, what) from None


@asynccontextmanager
async def open_http(pool: Pool, inactivity: float) -> AsyncIterator[HttpClient]:
    """Make a client; each transfer has a connection of its own, as the server closes it anyway."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_AHEAD,
        auto_decompress=False,
        skip_auto_headers=("Accept", "Content-Type"),
    ) as http:
        yield HttpClient(pool, http, inactivity)


def connection_error(error: Exception, address: Address | None, what: str) -> ProtocolError:
    """Make our error of aiohttp's, whose text may quote the URL with the session in it."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return PoolCertificateError(
            str(address), f"it shows the certificate sha256:{error.got.hex()} during the {what}"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "the certificate is not trusted"
        return PoolCertificateError(str(address), f"{why} during the {what}")
    if isinstance(error, TimeoutError):
        return TransferError(what, "no answer in time")
    number = error.errno if isinstance(error, OSError) else None
    return TransferError(what, f"connection lost: {os.strerror(number) if number else type(error).__name__}")


async def read_page(response: aiohttp.ClientResponse) -> str:
    """Read a short text to its end, or as much of it as is worth reading."""
    page = bytearray()
    try:
        while len(page) < _MAX_PAGE and (chunk := await response.content.read(_MAX_PAGE - len(page))):
            page += chunk
    except (aiohttp.ClientError, OSError):
        pass
    return page.decode("utf-8", "replace")


async def _refusal(response: aiohttp.ClientResponse, what: str, path: str) -> ProtocolError:
    status = response.status
    return failure_in_text(await read_page(response), path) or TransferError(what, f"HTTP status {status}", status)


def _redirected(address: Address, location: str, what: str) -> Address:
    """Read where to go next. The query stays ours: it is the same, and theirs is not to be believed."""
    try:
        parts = urlsplit(location)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if not host or parts.scheme not in ("http", "https"):
        raise TransferError(what, "redirected to nowhere")
    if address.secure and parts.scheme == "http":
        raise TransferError(what, f"redirected to {host} without TLS")
    return Address(parts.scheme, host, port or (443 if parts.scheme == "https" else 80))
