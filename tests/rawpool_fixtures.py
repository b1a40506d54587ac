"""A pool as small as can be, on raw sockets: every awkward manner of a server is written out in the test that needs it.

It knows sessions, tasks and events; HTTP handlers are functions of the test that get the request and the bare streams.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import itertools
import ssl
import xmlrpc.client
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.secret import Secret
from protocol.xapi import Patience, Pool, Trust, connect

PASSWORD = "a password that nobody may see"
USER = "root"


class Refused(Exception):
    """What a call answers with instead of a value."""

    def __init__(self, *details: str) -> None:
        super().__init__(*details)
        self.details = list(details)


@dataclass
class Request:
    """One HTTP request to a data handler."""

    verb: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head_length: int

    async def answer(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def body(self) -> bytes:
        return await self.reader.readexactly(int(self.headers["content-length"]))


Handler = Callable[[Request], Awaitable[None]]
Method = Callable[..., Any]


QUICK = Patience(connect=5, call=5, task=20, attempts=3, first_wait=0.01, longest_wait=0.02)


@dataclass
class RawPool:
    """State of the pool. `methods` override or add calls: they get the arguments after the session."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0
    methods: dict[str, Method] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    destroyed: list[str] = field(default_factory=list)
    doomed: set[str] = field(default_factory=set)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    connections: int = 0
    before: Callable[[str, asyncio.StreamWriter], Awaitable[bool]] | None = None

    def __post_init__(self) -> None:
        self._changed = asyncio.Condition()
        self._versions = itertools.count(1)
        self._count = itertools.count(1)
        self._serving: set[asyncio.Task[None] | None] = set()
        self._log: list[tuple[int, str, str]] = []
        self.hosts = self.hosts or {"OpaqueRef:host": host_record(self.host)}

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    async def make_task(self, status: str = "pending") -> str:
        ref = f"OpaqueRef:task-{next(self._count)}"
        self.tasks[ref] = {"uuid": ref, "status": status, "result": "", "error_info": [], "progress": 0.0}
        await self._note("add", ref)
        return ref

    async def end_task(
        self, ref: str, status: str = "success", result: str = "", error: list[str] | None = None
    ) -> None:
        if ref in self.tasks and self.tasks[ref]["status"] == "pending":
            self.tasks[ref] |= {"status": status, "result": result, "error_info": error or [], "progress": 1.0}
            await self._note("mod", ref)
        if ref in self.doomed:
            await self.drop_task(ref)

    async def drop_task(self, ref: str) -> None:
        self.tasks.pop(ref, None)
        await self._note("del", ref)

    async def _note(self, operation: str, ref: str) -> None:
        async with self._changed:
            self._log.append((next(self._versions), operation, ref))
            self._changed.notify_all()

    async def dispatch(self, method: str, params: list[Any]) -> Any:
        self.calls.append(method)
        if method == "session.login_with_password":
            if method in self.methods:
                return await self._result(self.methods[method](*params))
            if params[:2] != [USER, PASSWORD]:
                raise Refused("SESSION_AUTHENTICATION_FAILED", params[0], "no")
            session = f"OpaqueRef:session-{next(self._count)}"
            self.sessions.add(session)
            return session
        session, *rest = params
        if session not in self.sessions:
            raise Refused("SESSION_INVALID", session)
        if method in self.methods:
            return await self._result(self.methods[method](*rest))
        return await self._standard(method, session, rest)

    async def _result(self, result: Any) -> Any:
        return await result if asyncio.iscoroutine(result) else result

    async def _standard(self, method: str, session: str, rest: list[Any]) -> Any:
        match method, rest:
            case "session.logout", []:
                self.sessions.discard(session)
                await self._note("mod", "")
                return ""
            case "pool.get_all_records", []:
                return {"OpaqueRef:pool": {"uuid": "p", "master": next(iter(self.hosts))}}
            case "host.get_all_records", []:
                return self.hosts
            case "task.create", [_, _]:
                return await self.make_task()
            case "task.get_record", [ref]:
                if ref not in self.tasks:
                    raise Refused("HANDLE_INVALID", "task", ref)
                return self.tasks[ref]
            case "task.cancel", [ref]:
                await self.end_task(ref, "cancelled")
                return ""
            case "task.set_status", [ref, status]:
                if ref not in self.tasks:
                    raise Refused("HANDLE_INVALID", "task", ref)
                # No more than that: a task that is to be destroyed when it ends is not looked at here.
                self.tasks[ref]["status"] = status
                await self._note("mod", ref)
                return ""
            case "task.destroy", [ref]:
                self.destroyed.append(ref)
                if ref in self.tasks and self.tasks[ref]["status"] == "pending":
                    self.doomed.add(ref)
                else:
                    await self.drop_task(ref)
                return ""
            case "event.from", [_, token, timeout]:
                return await self._events(session, int(token or 0), float(timeout))
            case _:
                raise Refused("MESSAGE_METHOD_UNKNOWN", method)

    async def _events(self, session: str, token: int, timeout: float) -> Any:
        def news() -> list[tuple[int, str, str]]:
            return [entry for entry in self._log if entry[0] > token]

        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: news() or session not in self.sessions)
        except TimeoutError:
            pass
        if session not in self.sessions:
            raise Refused("SESSION_INVALID", session)
        events = [
            {"class": "task", "operation": operation, "ref": ref, "id": str(number), "timestamp": "0.0"}
            | ({"snapshot": self.tasks[ref]} if ref in self.tasks else {})
            for number, operation, ref in news()
            if ref
        ]
        return {"events": events, "token": str(self._log[-1][0] if self._log else 0), "valid_ref_counts": {}}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # A handler that waits for ever, its transport paused, is reachable from nowhere else and would be collected.
        self._serving.add(asyncio.current_task())
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self._serving.discard(asyncio.current_task())
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")[:-2]
        verb, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if verb != "POST":
            parts = urlsplit(target)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            request = Request(verb, parts.path, query, headers, reader, writer, len(head))
            await self.handlers[parts.path](request)
            return False
        body = await reader.readexactly(int(headers["content-length"]))
        params, method = xmlrpc.client.loads(body)
        if self.before is not None and not await self.before(str(method), writer):
            return False
        try:
            answer: Any = {"Status": "Success", "Value": await self.dispatch(str(method), list(params))}
        except Refused as refused:
            answer = {"Status": "Failure", "ErrorDescription": refused.details}
        text = xmlrpc.client.dumps((answer,), methodresponse=True, allow_none=True).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n" % len(text) + text)
        await writer.drain()
        return True


def host_record(address: str) -> dict[str, Any]:
    return {
        "uuid": address,
        "name_label": address,
        "address": address,
        "API_version_major": "2",
        "API_version_minor": "21",
        "software_version": {"product_brand": "XCP-ng", "product_version": "8.3.0"},
    }


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key in one PEM file."""

    file: Path
    pem: str
    der: bytes

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        return context


def make_certificate(folder: Path, name: str, *addresses: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), *names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / f"{name}.pem"
    file.write_bytes(secret + pem)
    return Certificate(file, pem.decode(), certificate.public_bytes(serialization.Encoding.DER))


@asynccontextmanager
async def raw_pool(
    certificate: Certificate | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RawPool]:
    """Serve a pool until the end of the block."""
    pool = RawPool(scheme="http" if certificate is None else "https", host=host)
    context = None if certificate is None else certificate.server_context()
    server = await asyncio.start_server(pool.serve, host, port, ssl=context, limit=1 << 20)
    pool.port = server.sockets[0].getsockname()[1]
    try:
        yield pool
    finally:
        server.close()


@asynccontextmanager
async def joined(server: RawPool, trust: Trust | None = None, patience: Patience = QUICK) -> AsyncIterator[Pool]:
    async with connect(server.url, USER, Secret(PASSWORD), trust or Trust.system(), patience=patience) as pool:
        yield pool
