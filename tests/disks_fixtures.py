"""Simulated disks and their NBD daemon, without the rest of the pool."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mover.simulator.certificate import host_certificate
from mover.simulator.faults import Faults
from mover.simulator.nbd import Backend, Mode, NbdDaemon, Network, open_disk
from mover.simulator.storage import Disks, StorageError

KiB = 1 << 10
MiB = 1 << 20
GRANULE = 64 * KiB
SESSION = "OpaqueRef:session"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip, naming the programs that are missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


async def run(*command: str, timeout: float = 60) -> tuple[int, str]:
    """Run a program; returns its exit code and everything it said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(timeout):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")


def scattered(disks: Disks, uuid: str, size: int, seed: int = 1) -> bytes:
    """Make a disk with data here and there, a snapshot under it, and holes. Returns its content."""
    rng = random.Random(seed)
    content = bytearray(size)

    def write(count: int) -> None:
        for _ in range(count):
            offset = rng.randrange(size)
            data = rng.randbytes(min(rng.randrange(1, 300 * KiB), size - offset))
            disks.write(uuid, offset, data)
            content[offset : offset + len(data)] = data

    disks.create(uuid, size)
    write(8)
    disks.snapshot(uuid, f"{uuid}-snapshot")
    write(8)
    return bytes(content)


@asynccontextmanager
async def nbd_daemon(
    disks: Disks,
    folder: Path,
    mode: Mode = "plain",
    faults: Faults | None = None,
    network: Network | None = None,
) -> AsyncIterator[NbdDaemon]:
    """A running daemon that knows one session. `daemon.port` is where."""

    @asynccontextmanager
    async def attach(uuid: str, session: str) -> AsyncIterator[Backend]:
        if session != SESSION:
            raise StorageError(1, "no such session")
        with open_disk(disks, uuid) as disk:
            yield disk

    context = host_certificate(folder / "xapi-ssl.pem", "host", "127.0.0.1").context(tls12_only=True)
    daemon = NbdDaemon("127.0.0.1", attach, faults or Faults(), context=context, mode=lambda: mode, network=network)
    async with asyncio.TaskGroup() as group:
        await daemon.start(group)
        try:
            yield daemon
        finally:
            await daemon.stop()


def uri(daemon: NbdDaemon, uuid: str, session: str = SESSION) -> str:
    """What nbdinfo and its kind call the export."""
    return f"nbd://127.0.0.1:{daemon.port}//{uuid}%3Fsession_id={session}"
