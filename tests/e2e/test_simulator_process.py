"""`mover simulate` as a process: found by what it prints, steered from outside, killed, and there again."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.simulator_fixtures import MiB, in_thread


class Process:
    """A simulator and where it is."""

    def __init__(self, process: asyncio.subprocess.Process, where: dict[str, Any]) -> None:
        self.process = process
        self.where = where

    async def steer(self, operation: str, **arguments: Any) -> Any:
        """One operation; urllib's HTTPError for what is refused."""
        return await in_thread(post, self.where["steering"], {"op": operation, **arguments})

    async def call(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
        return (await in_thread(post, self.where["url"] + "/jsonrpc", body))["result"]

    async def login(self) -> str:
        session: str = await self.call("session.login_with_password", self.where["username"], self.where["password"])
        return session


def post(url: str, body: dict[str, Any]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as response:
        return json.loads(response.read())


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "mover", "simulate", "--dir", str(folder), "--json", "--plain-http"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Process(process, json.loads(await process.stdout.readline()))
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def test_a_pool_survives_being_killed(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as first:
        made = await first.steer("make_vm", name="guest", sizes=[4 * MiB])
        (uuid,) = made["vdis"]
        await first.steer("write", vdi=uuid, offset=MiB, data="aGVsbG8=")
        session = await first.login()
        vdi = await first.call("VDI.get_by_uuid", session, uuid)
        vm = await first.call("VM.get_by_uuid", session, made["vm"])
        await first.call("VDI.enable_cbt", session, vdi)
        snapshot = await first.call("VM.snapshot", session, vm, "kept")
        await first.call("VM.add_to_other_config", session, snapshot, "mine", "yes")
        digest = (await first.steer("digest", vdi=uuid))["digest"]
        saved = tmp_path / "pool" / "pool.json"
        while '"mine":"yes"' not in await in_thread(saved.read_text):  # written within 20 ms
            pass
        first.process.send_signal(signal.SIGKILL)
        assert await first.process.wait() == -signal.SIGKILL
    async with running(tmp_path / "pool") as second:
        assert await second.steer("digest", vdi=uuid) == {"digest": digest}
        session = await second.login()
        assert await second.call("task.get_all", session) == []
        assert await second.call("VM.get_name_label", session, snapshot) == "kept"
        assert (await second.call("VM.get_other_config", session, snapshot))["mine"] == "yes"
        assert await second.call("VM.get_snapshot_of", session, snapshot) == vm
        assert await second.call("VDI.get_cbt_enabled", session, vdi) is True


async def test_a_pool_is_steered_from_outside(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        (uuid,) = (await pool.steer("make_vm", name="guest", sizes=[4 * MiB]))["vdis"]
        await pool.steer("fill", vdi=uuid, offset=0, length=MiB, kind="text")
        granules = (await pool.steer("granules", vdi=uuid, clear=True))["granules"]
        assert granules == list(range(16))
        assert await pool.steer("dump", vdi=uuid, path=str(tmp_path / "dump")) == {"size": 4 * MiB}
        assert (tmp_path / "dump").read_bytes()[MiB:] == bytes(3 * MiB)
        await pool.steer("faults", faults=[{"type": "call", "method": "session.logout", "code": "INTERNAL_ERROR"}])
        session = await pool.login()
        with pytest.raises(KeyError, match="result"):
            await pool.call("session.logout", session)
        await pool.steer("expire_sessions")
        with pytest.raises(KeyError, match="result"):
            await pool.call("VM.get_all", session)
        for wrong in ({"op": "nonsense"}, {"op": "fill", "vdi": uuid}, {"op": "digest", "vdi": "none"}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                await pool.steer(**{"operation" if key == "op" else key: value for key, value in wrong.items()})


async def test_it_ends_with_an_interrupt(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        pool.process.send_signal(signal.SIGINT)
        assert await pool.process.wait() == 130
