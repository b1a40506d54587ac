"""A simulated pool in a process of its own, and how the demo steers it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from mover.errors import PoolError
from mover.simulator.process import Whereabouts

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 20.0


class DemoPool:
    """Where the pool is, and `tell` to make things happen on it."""

    def __init__(self, where: Whereabouts, client: aiohttp.ClientSession) -> None:
        self.where = where
        self._client = client

    async def tell(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One operation of `mover.simulator.steering`. Raises `PoolError`."""
        async with self._client.post(self.where.steering, json={"op": operation, **arguments}) as response:
            answer: dict[str, Any] = await response.json()
        if "error" in answer:
            raise PoolError(f"the simulated pool could not {operation}: {answer['error']}")
        return answer


@asynccontextmanager
async def demo_pool(directory: Path) -> AsyncIterator[DemoPool]:
    """Start `mover simulate` in a process of its own, as any pool is; stop it in the end."""
    directory.mkdir(parents=True, exist_ok=True)
    log = (directory / "log").open("ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mover", "simulate", "--dir", str(directory), "--json",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
    )  # fmt: skip
    log.close()
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            line = await process.stdout.readline()
        if not line:
            raise PoolError(f"the simulated pool did not start; {directory}/log says why")
        # What a guest does can take a while: no limit but the demo's own.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as client:
            yield DemoPool(msgspec.json.decode(line, type=Whereabouts), client)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
