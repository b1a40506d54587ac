"""`mover serve` as a process, and points for it to serve: an ext4 file system, made without root, beside odd disks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mover.store import PointDisk, PointRecord, Store
from tests import fork_server
from tests.store_fixtures import noise, text, write_disk

MiB = 1 << 20
MOVER = [sys.executable, "-m", "mover"]


def ext4_image(folder: Path, files: Mapping[str, bytes], size: int = 24 * MiB) -> bytes:
    """A disk that is one ext4 file system with these files in it."""
    content = folder / "content"
    for name, data in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(data)
    image = folder / "ext4.img"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(content), str(image)], check=True, timeout=60)
    return image.read_bytes()


def patchy(size: int = 9 * MiB + 512) -> bytes:
    """A disk with data and holes that keep to no boundary, and an end that no chunk ends at."""
    data = bytearray(size)
    for offset, length in ((0, 70_000), (2 * MiB - 4096, 3 * MiB), (7 * MiB + 1234, 99), (size - 600, 600)):
        data[offset : offset + length] = noise(offset, length) if offset else text(offset, length)
    return bytes(data)


def store_with(where: Path, disks: Sequence[tuple[str, bytes]], metadata: bytes = b"", vm: str = "web") -> Store:
    """A store with one point of one VM, whose disks have these names and contents, at positions 0, 1, …"""
    store = Store.create(str(where))
    with store.writer() as writer:
        found = [
            PointDisk(position=str(at), name=name, vdi_uuid=f"vdi-{at}", size=len(data), root=write_disk(writer, data))
            for at, (name, data) in enumerate(disks)
        ]
        blob = writer.put_blob(metadata) if metadata else b""
        record = PointRecord(vm_uuid=f"{vm}-uuid", vm_name=vm, created=1e9, metadata=blob, disks=found)
        writer.commit(record)
    return store


@dataclass
class Served:
    """A running `mover serve`. `disks` is what it said on stdout: uri, position, name and size of each."""

    process: fork_server.Process
    disks: list[dict[str, object]]
    said: list[str] = field(default_factory=list)

    def uri(self, position: int | str = 0) -> str:
        """Where a disk is."""
        (found,) = [disk for disk in self.disks if disk["position"] == str(position)]
        return str(found["uri"])

    async def says(self, words: str) -> str:
        """Wait until a line on stderr contains `words`; returns the line."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while True:
                line = (await self.process.stderr.readline()).decode()
                assert line, f"it ended without saying {words!r}: {self.said}"
                self.said.append(line)
                if words in line:
                    return line

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; what it said is in `said` then."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            rest = await self.process.stderr.read()
            self.said += rest.decode().splitlines(keepends=True)
            return await self.process.wait()


@asynccontextmanager
async def serving(*arguments: object) -> AsyncIterator[Served]:
    """Run `mover serve ARGUMENTS` on a free port (or as the arguments say) until the end of the block."""
    place = [] if {"--port", "--socket"} & {str(argument) for argument in arguments} else ["--port", "0"]
    process = await fork_server.create_subprocess_exec(
        *MOVER,
        "serve",
        *map(str, arguments),
        *place,
        "--json",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
        served = Served(process, json.loads(line)["disks"])
        yield served
        if process.returncode is None:
            assert await served.stop() == 143, served.said
        assert not any("Traceback" in line for line in served.said), served.said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
