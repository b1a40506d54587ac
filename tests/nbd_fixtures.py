"""Servers for the tests of the NBD client: nbdkit as it is, and certificates for it."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.arena import Arena
from protocol.block import Block
from protocol.errors import NbdError
from protocol.extent import Extent
from protocol.nbd import Budget, Connection, Endpoint, Timeouts, connect
from protocol.nbd.connection import Service
from protocol.secret import Secret
from protocol.tasks import interruptible

KiB = 1 << 10
MiB = 1 << 20

needs_nbdkit = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="nbdkit is not installed")


@contextmanager
def nbdkit(*arguments: str) -> Iterator[int]:
    """Run nbdkit with these arguments; yields its port.

    The socket listens before nbdkit starts (it gets it as systemd's socket activation would hand it over), so nobody
    has to wait, and no port is guessed.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -f "$@"',
                str(listener.fileno()),
                *arguments,
            ],
            pass_fds=[listener.fileno()],
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def self_signed(folder: Path, name: str = "host") -> str:
    """Make a certificate and its key where nbdkit looks for them; returns the certificate's PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server-cert.pem").write_text(pem)
    (folder / "ca-cert.pem").write_text(pem)
    (folder / "server-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem


def plain(port: int, host: str = "host", export: str = "disk") -> Endpoint:
    return Endpoint("127.0.0.1", port, Secret(export), None, host)


def secured(port: int, certificate: str, host: str = "host", export: str = "disk") -> Endpoint:
    return Endpoint("127.0.0.1", port, Secret(export), certificate, host)


def at(*endpoints: Endpoint) -> Callable[[], Awaitable[Sequence[Endpoint]]]:
    """A `locate` that always names these."""

    async def locate() -> Sequence[Endpoint]:
        return endpoints

    return locate


def pattern(offset: int, length: int) -> bytes:
    """What nbdkit's pattern plugin serves: each 8 bytes hold their own offset."""
    first = offset // 8
    words = (np.arange(first, -(-(offset + length) // 8)) * 8).astype(">u8").tobytes()
    return words[offset - 8 * first :][:length]


class Sink:
    """Takes blocks, and compares what it got: every wanted byte once, with the right content.

    `together` has how many blocks came at once each time.
    """

    def __init__(self, content: Callable[[int, int], bytes] = pattern) -> None:
        self._content = content
        self.together: list[int] = []
        self.taken: list[Extent] = []
        self.wrong: list[Extent] = []

    def take(self, blocks: Sequence[Block]) -> None:
        self.together.append(len(blocks))
        for block in blocks:
            for extent in block.wanted:
                if block.part(extent).tobytes() != self._content(extent.offset, extent.length):
                    self.wrong.append(extent)
                self.taken.append(extent)

    def check(self, wanted: Sequence[Extent]) -> None:
        """Every wanted byte came exactly once, and was right."""
        assert not self.wrong
        pieces = sorted(self.taken)
        joined: list[Extent] = []
        for piece in pieces:
            if joined and joined[-1].end == piece.offset:
                joined[-1] = Extent(joined[-1].offset, joined[-1].length + piece.length)
            else:
                assert not joined or joined[-1].end < piece.offset, f"{piece} came twice"
                joined.append(piece)
        assert joined == list(wanted)


@asynccontextmanager
async def nothing_left(arena: Arena | None = None) -> AsyncIterator[None]:
    """Whatever runs inside leaves no task, thread, descriptor or slot behind."""

    def inventory() -> tuple[int, int, int]:
        slots = 0 if arena is None else len(arena._free)
        return len(asyncio.all_tasks()), threading.active_count(), slots

    before, files = inventory(), _descriptors()
    yield
    assert inventory() == before
    assert not _descriptors() - files


def _descriptors() -> set[str]:
    """Open sockets and lock files of this process."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists the folder is gone already
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if "socket" in name or "mover-nbd" in name}


def budget(folder: Path, limit: int = 12) -> Budget:
    return Budget(limit, folder / "mover-nbd")


@dataclass(frozen=True)
class Client:
    """A connection and the thread that reads through it."""

    connection: Connection
    thread: ThreadPoolExecutor

    async def read(self, view: memoryview, offset: int) -> Service:
        """Fill `view`; what `wait` returns. Whoever is cancelled aborts the connection."""

        def interrupt() -> None:
            self.connection.abort(NbdError(self.connection.endpoint.server, "cancelled"))

        return await interruptible(
            self.thread, interrupt, lambda: self.connection.wait(self.connection.submit(view, offset))
        )


@asynccontextmanager
async def connected(endpoint: Endpoint, timeouts: Timeouts | None = None) -> AsyncIterator[Client]:
    """A connection of our own client."""
    patience = timeouts or Timeouts(connect=5, handshake=5, request=5)
    with ThreadPoolExecutor(1, "nbd-test") as thread, await connect(endpoint, patience, thread) as connection:
        yield Client(connection, thread)


async def refused(endpoint: Endpoint, timeouts: Timeouts | None = None) -> None:
    """Connect, which is to fail."""
    async with connected(endpoint, timeouts):
        pass
