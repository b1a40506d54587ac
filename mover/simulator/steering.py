"""Steering a simulated pool that runs in a process of its own: one endpoint, on the loopback address only.

`POST /_simulator` takes a JSON object `{"op": NAME, ...}` and answers with one; what fails is `{"error": TEXT}` and a
status of 400. It is not part of what is simulated, needs no session, and has a port of its own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mover.simulator.failure import Failure
from mover.simulator.faults import FaultFormatError
from mover.simulator.guest import GuestError
from mover.simulator.http import Connection, Request, Routes, respond
from mover.simulator.simulator import Simulator
from mover.simulator.storage import StorageError

PATH = "/_simulator"
_LIMIT = 64 << 20

Arguments = dict[str, Any]


class Steering:
    """What a simulator can be told from outside. Operations run one after the other, on the pool's own event loop."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._operations: dict[str, Callable[[Arguments], Any]] = {
            "make_vm": self._make_vm,
            "install": self._install,
            "write": self._write,
            "fill": self._fill,
            "scatter": self._scatter,
            "write_files": self._write_files,
            "granules": self._granules,
            "copy_in": self._copy_in,
            "dump": self._dump,
            "digest": self._digest,
            "network": self._network,
            "faults": self._faults,
            "crash_disk": lambda told: simulator.crash_disk(told["vdi"]),
            "expire_sessions": lambda told: simulator.expire_sessions(),
            "restart_toolstack": lambda told: simulator.restart_toolstack(),
        }

    def add_to(self, routes: Routes) -> None:
        """Serve it."""
        routes.add("POST", PATH, self._handle)

    async def _handle(self, request: Request, connection: Connection) -> bool:
        length = request.content_length or 0
        status, answer = "400 Bad Request", {"error": f"a body of 1 to {_LIMIT} bytes is needed"}
        if 0 < length <= _LIMIT:
            status, answer = await self._answer(await connection.readexactly(length))
        body = json.dumps(answer).encode()
        await respond(connection, status, body, content_type="application/json")
        return False

    async def _answer(self, body: bytes) -> tuple[str, Any]:
        try:
            told = json.loads(body)
            operation = told["op"]
            if operation in ("stop_host", "start_host"):
                await getattr(self._simulator, operation)(int(told["host"]))
                return "200 OK", {}
            return "200 OK", self._operations[operation](told) or {}
        except (Failure, StorageError, GuestError, FaultFormatError, OSError, ValueError, TypeError, KeyError) as error:
            return "400 Bad Request", {"error": f"{type(error).__name__}: {error}"}

    def _make_vm(self, told: Arguments) -> Any:
        vm = self._simulator.make_vm(told["name"], told["sizes"], names=told.get("names", ()))
        uuid = self._simulator.pool.database.get("VM", vm)["uuid"]
        return {"vm": uuid, "vdis": self._simulator.vdis_of(vm)}

    def _install(self, told: Arguments) -> None:
        self._simulator.guest(told["vdi"]).install(Path(told["tree"]))

    def _write(self, told: Arguments) -> None:
        self._simulator.guest(told["vdi"]).write(told["offset"], base64.b64decode(told["data"], validate=True))

    def _fill(self, told: Arguments) -> None:
        self._simulator.guest(told["vdi"]).fill(told["offset"], told["length"], told["kind"])

    def _scatter(self, told: Arguments) -> None:
        self._simulator.guest(told["vdi"]).scatter(told["count"], told["length"], told.get("kind", "random"))

    def _write_files(self, told: Arguments) -> None:
        files = {path: Path(source) for path, source in told["files"].items()}
        self._simulator.guest(told["vdi"]).write_files(files)

    def _granules(self, told: Arguments) -> Any:
        log = self._simulator.guest(told["vdi"]).log
        granules = log.granules
        if told.get("clear"):
            log.clear()
        return {"granules": granules}

    def _copy_in(self, told: Arguments) -> None:
        self._simulator.guest(told["vdi"]).copy_in(Path(told["path"]), told.get("start", 0), told.get("length"))

    def _dump(self, told: Arguments) -> Any:
        """Every byte of a disk into a sparse file."""
        self._simulator.guest(told["vdi"]).copy_out(Path(told["path"]))
        return {"size": self._simulator.disks.size(told["vdi"])}

    def _digest(self, told: Arguments) -> Any:
        return {"digest": self._simulator.disks.digest(told["vdi"])}

    def _network(self, told: Arguments) -> None:
        self._simulator.network.latency = float(told.get("latency", 0.0))
        bandwidth = told.get("bandwidth")
        self._simulator.network.bandwidth = None if bandwidth is None else float(bandwidth)

    def _faults(self, told: Arguments) -> None:
        self._simulator.faults.arm_json(json.dumps(told["faults"]))
