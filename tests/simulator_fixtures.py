"""A small simulated pool, and the plainest clients for it: sockets and the standard library, nothing of ours."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from mover.simulator import Options, Simulator

MiB = 1 << 20
GRANULE = 64 << 10
T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking client beside the pool's event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))


class RpcError(Exception):
    """What a call answered: the error in the shape it came in."""

    def __init__(self, error: Any) -> None:
        super().__init__(error)
        self.error = error

    @property
    def description(self) -> list[str]:
        """Code and parameters."""
        if isinstance(self.error, dict):
            return [self.error["message"], *self.error["data"]]
        return list(self.error)


@dataclass
class Reply:
    """One HTTP response as it came: `status` is the number, `rest` everything after the head, until the close."""

    status: int
    head: str
    rest: bytes

    def header(self, name: str) -> str | None:
        """A header's value."""
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return None


@dataclass
class SmallPool:
    """A running pool and one VM; `vdis` are UUIDs. `call` speaks JSON-RPC in the name of `session`."""

    simulator: Simulator
    vm: str
    vdis: list[str]
    session: str = ""
    _trust: ssl.SSLContext | None = field(default=None, repr=False)

    def ref(self, uuid: str) -> str:
        """The reference of a VDI."""
        return self.simulator.pool.database.by_uuid("VDI", uuid)

    async def call(self, method: str, *params: Any, host: int = 0) -> Any:
        """A call with the session before its parameters."""
        return await self.bare_call(method, self.session, *params, host=host)

    async def bare_call(self, method: str, *params: Any, host: int = 0) -> Any:
        """A JSON-RPC 2.0 call over a connection of its own. Raises RpcError."""
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 7}).encode()
        url = f"{self.simulator.url_of(host)}/jsonrpc"
        answer = json.loads(await in_thread(self._post, url, body))
        assert answer["id"] in (7, 0)
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    async def task(self, method: str, *params: Any) -> str:
        """An asynchronous call, waited for with event.from; the task's result, or RpcError with its error_info."""
        task = await self.call(f"Async.{method}", *params)
        return await self.finished(task)

    async def finished(self, task: str) -> str:
        """Wait for a task; its result, or RpcError with its error_info."""
        token = ""
        while True:
            batch = await self.call("event.from", [f"task/{task}"], token, 30.0)
            token = batch["token"]
            for event in batch["events"]:
                record = event["snapshot"]
                if record["status"] == "success":
                    return str(record["result"])
                if record["status"] in ("failure", "cancelled"):
                    raise RpcError(record["error_info"])

    async def http(self, request: bytes, host: int = 0, upload: bytes = b"") -> Reply:
        """Send bytes as they are, then read to the end of the connection."""
        reader, writer = await self.connect(host)
        try:
            writer.write(request + upload)
            answer = await reader.read()
        finally:
            writer.transport.abort()
        head, _, rest = answer.partition(b"\r\n\r\n")
        text = head.decode("latin-1")
        return Reply(int(text.split(" ")[1]), text, rest)

    async def connect(self, host: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the HTTP port of a host."""
        url = urlsplit(self.simulator.url_of(host))
        trust = self.trust() if url.scheme == "https" else None
        return await asyncio.open_connection(url.hostname, url.port, ssl=trust)

    def trust(self) -> ssl.SSLContext:
        """Trusts the certificates of all hosts."""
        if self._trust is None:
            self._trust = ssl.create_default_context(
                cadata="".join(host.certificate.pem for host in self.simulator.pool.hosts)
            )
        return self._trust

    def _post(self, url: str, body: bytes) -> bytes:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60, context=self.trust()) as response:
            assert response.headers["content-type"] == "application/json"
            content: bytes = response.read()
        return content


@asynccontextmanager
async def small_pool(
    folder: Path, options: Options | None = None, sizes: tuple[int, ...] = (4 * MiB, 6 * MiB), **vm: Any
) -> AsyncIterator[SmallPool]:
    """A pool with a VM of a few small disks and a session, for the length of the block."""
    async with Simulator(folder, options or Options(tls=False)) as simulator:
        ref = simulator.make_vm("small", sizes, **vm)
        pool = SmallPool(simulator, ref, simulator.vdis_of(ref))
        pool.session = await pool.bare_call(
            "session.login_with_password", simulator.username, simulator.password, "1.0", "tests"
        )
        yield pool


async def refused(awaitable: Any, *description: str) -> None:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert tuple(caught.value.description[: len(description)]) == description


async def disks_of(pool: SmallPool, vm: str) -> list[str]:
    """The references of a VM's disks, by position."""
    vbds = [await pool.call("VBD.get_record", vbd) for vbd in await pool.call("VM.get_VBDs", vm)]
    return [vbd["VDI"] for vbd in sorted(vbds, key=lambda vbd: vbd["userdevice"]) if vbd["type"] == "Disk"]


def vbd_record(vm: str, vdi: str, **changes: Any) -> dict[str, Any]:
    record = {"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": False, "mode": "RW", "type": "Disk"}
    record |= {"empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    return record | changes
