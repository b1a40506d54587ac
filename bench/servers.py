"""Servers to read from: nbdkit, so that the server is nobody's excuse, and a simulated pool for its manners."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import nbd

from protocol.extent import Extent


@contextmanager
def nbdkit(*arguments: str) -> Iterator[int]:
    """Run nbdkit with these arguments; yields its port. It inherits a socket that listens already."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = int(listener.getsockname()[1])
        inherit = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -f "$@"'
        process = subprocess.Popen(
            ["bash", "-c", inherit, str(listener.fileno()), *arguments], pass_fds=[listener.fileno()]
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def write_extents(port: int, source: Path, extents: Sequence[Extent]) -> None:
    """Write these parts of a file to the same places of what nbdkit serves at `port`."""
    handle = nbd.NBD()
    handle.connect_tcp("127.0.0.1", str(port))
    with source.open("rb") as file:
        for extent in extents:
            file.seek(extent.offset)
            handle.pwrite(file.read(extent.length), extent.offset)
    handle.shutdown()


@contextmanager
def relay(port: int, stalled: int | None, after: int) -> Iterator[int]:
    """Pass connections on to `port`; yields the port to connect to.

    The connection number `stalled` (from 0) stays open but brings nothing more once it has brought `after` bytes.
    """
    ended = Event()

    def pass_on(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 18):
                if limit is not None and passed >= limit:
                    ended.wait()
                target.sendall(data)
                passed += len(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            for number in count():
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                limit = after if number == stalled else None
                for arguments in ((client, server, None), (server, client, limit)):
                    Thread(target=pass_on, args=arguments, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        Thread(target=serve, args=(listener,), daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class SimulatedPool:
    """`where` is what `mover simulate --json` printed; `vdis` the first disk (UUID) of each VM by its name."""

    where: dict[str, Any]
    vdis: dict[str, str] = field(default_factory=dict)

    def steer(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One operation of its steering port. Raises `OSError` if it was refused."""
        body = json.dumps({"op": operation, **arguments}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.where["steering"], body, method="POST")) as answer:
            return json.loads(answer.read())

    def make_vm(self, name: str, sizes: list[int]) -> dict[str, Any]:
        """A VM with empty disks of these sizes in bytes: its UUID as `vm`, theirs as `vdis`."""
        made = self.steer("make_vm", name=name, sizes=sizes)
        self.vdis[name] = made["vdis"][0]
        return made

    def copy_in(self, vdi: str, image: Path, start: int = 0, length: int | None = None) -> None:
        """Write the data of a file, from byte `start` on, into a disk."""
        self.steer("copy_in", vdi=vdi, path=str(image), start=start, length=length)

    def job(self, folder: Path, store: Path, more: str = "") -> Path:
        """The file of a job for all its VMs into `store`."""
        secret = folder / "secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(self.where["password"] + "\n")
        pins = json.dumps(self.where["fingerprints"])
        path = folder / f"{store.name}.toml"
        path.write_text(
            f'[pool]\nurl = "{self.where["url"]}"\nusername = "{self.where["username"]}"\n'
            f'password-file = "{secret}"\n'
            + (f"fingerprint = {pins}\n" if self.where["url"].startswith("https") else "")
            + f'[store]\nurl = "file://{store}"\n[[vms]]\nall = true\n{more}'
        )
        return path


@contextmanager
def simulated_pool(folder: Path, *arguments: str) -> Iterator[SimulatedPool]:
    """Run `mover simulate` in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mover", "simulate", "--dir", str(folder), "--json", *arguments]
    environment = {**os.environ, "MOVER_STATE": str(folder)}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"the simulated pool did not start: {(folder / 'log').read_text()[-2000:]}")
        yield SimulatedPool(json.loads(said))
    finally:
        process.terminate()
        process.wait()
        log.close()
