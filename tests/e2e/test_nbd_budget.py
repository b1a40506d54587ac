"""The budget of connections per host: within one process, among processes, and when one of them dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import NbdConnectError
from protocol.nbd.budget import Budget, Lease

# Takes two slots of the host, says so, and holds them until its input ends, or it is killed.
HOLDER = """
import asyncio, sys
from pathlib import Path
from protocol.nbd.budget import Budget
async def main():
    budget = Budget(3, Path(sys.argv[1]))
    leases = [await budget.acquire("host", 5) for _ in range(2)]
    print("held", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


async def test_no_more_than_the_limit(tmp_path: Path) -> None:
    budget = Budget(3, tmp_path / "slots")
    leases = [await budget.acquire("host") for _ in range(3)]
    with pytest.raises(NbdConnectError, match=r"host: no free connection \(of 3\)"):
        await budget.acquire("host", 0.05)
    leases.pop().release()
    (await budget.acquire("host", 5)).release()
    (await budget.acquire("another host", 5)).release()
    for lease in leases:
        lease.release()
        lease.release()  # twice is once
    for lease in [await budget.acquire("host", 5) for _ in range(3)]:
        lease.release()


async def test_a_disk_without_any_connection_goes_first(tmp_path: Path) -> None:
    budget = Budget(1, tmp_path / "slots")
    order: list[str] = []

    async def wait(name: str, *, first: bool) -> None:
        with await budget.acquire("host", 5, first=first):
            order.append(name)

    held = await budget.acquire("host")
    async with asyncio.TaskGroup() as group:
        group.create_task(wait("second connection", first=False))
        group.create_task(wait("new disk", first=True))
        await asyncio.sleep(0)
        held.release()
    assert order == ["new disk", "second connection"]


async def test_waiting_can_be_cancelled(tmp_path: Path) -> None:
    budget = Budget(1, tmp_path / "slots")
    held = await budget.acquire("host")
    waiters: list[asyncio.Task[Lease]] = []
    async with asyncio.TaskGroup() as group:
        waiters.extend(group.create_task(budget.acquire("host")) for _ in range(3))
        await asyncio.sleep(0)
        waiters[0].cancel()
        held.release()  # goes to the second ...
        waiters[1].cancel()  # ... who does not want it any more, in the same moment
    waiters[2].result().release()
    (await budget.acquire("host", 5)).release()


async def test_other_processes_count_until_they_die(tmp_path: Path) -> None:
    folder = tmp_path / "slots"
    budget = Budget(3, folder)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    mine = await budget.acquire("host", 5)
    with pytest.raises(NbdConnectError, match="no free connection"):
        await budget.acquire("host", 0.1)
    holder.kill()
    await holder.wait()
    others = [await budget.acquire("host", 5) for _ in range(2)]
    for lease in [mine, *others]:
        lease.release()


async def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "slots"
    folder.mkdir()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        await Budget(1, folder).acquire("host")
    # A failed try holds nothing.
    monkeypatch.undo()
    budget = Budget(1, folder)
    (await budget.acquire("host", 1)).release()
