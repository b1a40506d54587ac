"""One connection to one host's XML-RPC, synchronous: the transport under the official `XenAPI` client.

That client re-sends a call by itself when a connection drops or a session is gone, whatever the call does. Here a
call is sent once; whether it may be repeated is decided above, by what the call is.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import xmlrpc.client
from contextlib import suppress
from typing import Any
from xml.parsers import expat

import XenAPI

from protocol.errors import FormatError, PoolUnreachableError, XapiError
from protocol.xapi.address import Address
from protocol.xapi.trust import Trust, unverified
from protocol.xapi.wire import MALFORMED, failure, failure_in_text, plain_value, wire_value

# The answer to VM.get_all_records of a large pool is tens of MB; the change map of a 64 TiB disk about 180 MB.
MAX_ANSWER = 256 << 20
_MAX_ERROR_PAGE = 1 << 16
# What is wrong with XML of which nothing but the end is missing.
_UNFINISHED = frozenset(
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
)


class NotSentError(PoolUnreachableError):
    """The connection could not be made: the call has not reached the pool, so any call may be repeated."""


class Channel:
    """Calls over one keep-alive connection, used by one thread at a time; only `abort` may come from another."""

    def __init__(self, address: Address, trust: Trust, connect_timeout: float) -> None:
        self.address = address
        self._trust = trust
        self._connect_timeout = connect_timeout
        self._timeout = connect_timeout
        self._socket: socket.socket | None = None
        self._http: http.client.HTTPConnection | None = None
        self._aborted = False
        self._proxy = XenAPI.Session(address.url, transport=self)

    def call(self, method: str, params: tuple[Any, ...], timeout: float) -> Any:
        """Send one call, its session reference among `params`, and return its value as plain data.

        `timeout` is the longest silence in seconds. Raises NotSentError, PoolUnreachableError (it may have been
        carried out), PoolCertificateError, XapiError, FormatError.
        """
        self._timeout = timeout
        try:
            answer = getattr(self._proxy, method)(*[wire_value(param) for param in params])
        except xmlrpc.client.Fault as fault:
            raise XapiError("FAULT", (str(fault.faultCode), str(fault.faultString)), method) from None
        except TimeoutError:
            self.close()
            raise self._lost(method, f"no answer in {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._lost(method, str(error) or type(error).__name__) from None
        return _value(answer, method)

    def abort(self) -> None:
        """End whatever is under way, from any thread: the call then fails as lost, and none is sent any more."""
        self._aborted = True
        if (connection := self._socket) is not None:
            # Not SSLSocket.shutdown: that takes the TLS object away from under the thread that reads.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up. The next call connects again."""
        connection, self._socket, self._http = self._http, None, None
        if connection is not None:
            connection.close()

    def request(self, host: str, handler: str, body: bytes, verbose: bool = False) -> tuple[Any, ...]:
        """Called by xmlrpc.client, which finds everything else it needs here too."""
        connection = self._connected()
        headers = {"Content-Type": "text/xml", "User-Agent": "mover"}
        connection.request("POST", handler, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            page = response.read(_MAX_ERROR_PAGE).decode("utf-8", "replace")
            self.close()
            raise failure_in_text(page, "") or PoolUnreachableError(
                str(self.address), f"it answers with HTTP status {response.status}"
            )
        data = response.read(MAX_ANSWER + 1)
        if response.will_close or len(data) > MAX_ANSWER:
            self.close()
        if len(data) > MAX_ANSWER:
            raise FormatError("XML-RPC answer", f"larger than {MAX_ANSWER} bytes")
        # Of an answer that a length was announced for, `http.client` gives out what came, and says nothing.
        if response.length:
            self.close()
            raise _cut_off()
        return _parse(data, ended_by_close=response.length is None and not response.chunked)

    def _connected(self) -> http.client.HTTPConnection:
        if self._http is not None and self._socket is not None and not _hung_up(self._socket):
            self._socket.settimeout(self._timeout)
            return self._http
        self.close()
        self._socket = self._connect()
        self._socket.settimeout(self._timeout)
        self._http = http.client.HTTPConnection(self.address.host, self.address.port)
        self._http.sock = self._socket
        if self._aborted:
            self.close()
            raise NotSentError(str(self.address), "interrupted")
        return self._http

    def _connect(self) -> socket.socket:
        target = (self.address.host, self.address.port)
        try:
            raw = socket.create_connection(target, timeout=self._connect_timeout)
        except OSError as error:
            raise NotSentError(str(self.address), error.strerror or str(error)) from None
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._secured(raw) if self.address.secure else raw

    def _secured(self, raw: socket.socket) -> ssl.SSLSocket:
        try:
            context = self._trust.context_for(self.address.host)
            secured = context.wrap_socket(raw, server_hostname=self.address.host)
        except ssl.SSLCertVerificationError as error:
            raw.close()
            raise unverified(self.address, error, self._connect_timeout) from None
        except OSError as error:
            raw.close()
            raise NotSentError(str(self.address), f"TLS: {error.strerror or error}") from None
        try:
            self._trust.check(self.address, secured.getpeercert(binary_form=True))
        except BaseException:
            secured.close()
            raise
        return secured

    def _lost(self, method: str, reason: str) -> PoolUnreachableError:
        return PoolUnreachableError(str(self.address), f"{reason} (during {method})")


def _hung_up(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read: the server's goodbye. Sending into it would lose a call."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _cut_off() -> ConnectionError:
    return ConnectionError("the connection ended in the middle of the answer")


def _parse(data: bytes, *, ended_by_close: bool = False) -> tuple[Any, ...]:
    parser, target = xmlrpc.client.getparser()
    try:
        parser.feed(data)
        parser.close()
        values: tuple[Any, ...] = target.close()
    except xmlrpc.client.Fault:
        raise
    except MALFORMED as error:
        if ended_by_close and isinstance(error, expat.ExpatError) and error.code in _UNFINISHED:
            raise _cut_off() from None
        raise FormatError("XML-RPC answer", str(error)) from None
    return values


def _value(answer: Any, method: str) -> Any:
    if isinstance(answer, list) and method == "system.listMethods":
        return plain_value(answer)
    match answer:
        case {"Status": "Success", "Value": value}:
            return plain_value(value)
        case {"Status": "Failure", "ErrorDescription": details}:
            raise failure(plain_value(details), method)
        case _:
            raise FormatError("XML-RPC answer", f"neither a value nor an error for {method}")
