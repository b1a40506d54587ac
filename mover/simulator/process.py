"""A simulated pool as a process: serves until it is cancelled, and says where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from mover.simulator.http import Routes
from mover.simulator.options import Options
from mover.simulator.server import HttpServer
from mover.simulator.simulator import Simulator
from mover.simulator.steering import PATH, Steering


class Whereabouts(msgspec.Struct, frozen=True):
    """How to reach a pool: `fingerprints` are those of all hosts' certificates, the master's first."""

    url: str
    username: str
    password: str
    fingerprints: list[str]
    steering: str


async def serve(
    directory: Path,
    options: Options,
    ready: Callable[[Whereabouts], None],
    vms: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> None:
    """Run a pool in `directory` until cancelled; `ready` is called once it can be used.

    It has the VMs `vms` then, by name with the sizes of their disks in bytes.
    """
    async with Simulator(directory, options) as simulator, asyncio.TaskGroup() as group:
        _make(simulator, vms)
        routes = Routes()
        Steering(simulator).add_to(routes)
        steering = HttpServer(routes, group, options.head_timeout)
        await steering.start("127.0.0.1", 0, None)
        try:
            ready(
                Whereabouts(
                    url=simulator.url,
                    username=simulator.username,
                    password=simulator.password,
                    fingerprints=simulator.fingerprints,
                    steering=f"http://127.0.0.1:{steering.port}{PATH}",
                )
            )
            await asyncio.get_running_loop().create_future()
        finally:
            await steering.stop()


def _make(simulator: Simulator, vms: Mapping[str, Sequence[int]]) -> None:
    """Make those that are not there from an earlier time, each disk half full of text."""
    present = {record["name_label"] for _, record in simulator.pool.database.items("VM")}
    for name in vms.keys() - present:
        for vdi in simulator.vdis_of(simulator.make_vm(name, vms[name])):
            simulator.guest(vdi).fill(0, simulator.disks.size(vdi) // 2, "text")
