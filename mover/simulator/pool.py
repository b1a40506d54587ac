"""What every part of the simulated pool works on."""

from __future__ import annotations

import asyncio
import uuid as uuids
from dataclasses import dataclass, field

from mover.simulator.busy import Busy
from mover.simulator.certificate import Certificate
from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.faults import Faults
from mover.simulator.options import Options
from mover.simulator.sessions import Sessions
from mover.simulator.storage import Disks
from mover.simulator.tasks import Tasks
from mover.simulator.values import NULL, Record, now


@dataclass
class Host:
    """A member of the pool: its record, where it listens, and whether it runs. Host 0 is the master."""

    ref: str
    address: str
    certificate: Certificate
    port: int = 0
    nbd_port: int = 0
    up: bool = True
    booting: bool = False

    def authority(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass
class Pool:
    """Records, disks, sessions and tasks, and the TaskGroup that owns everything running."""

    options: Options
    database: Database
    disks: Disks
    faults: Faults
    sessions: Sessions
    tasks: Tasks
    busy: Busy
    group: asyncio.TaskGroup
    hosts: list[Host] = field(default_factory=list)

    @property
    def master(self) -> Host:
        return self.hosts[0]

    def host(self, ref: str) -> Host:
        return next(host for host in self.hosts if host.ref == ref)

    def hosts_seeing(self, sr: str) -> list[Host]:
        """The running hosts with a plugged PBD of the SR."""
        seeing = {
            self.database.get("PBD", pbd)["host"]
            for pbd in self.database.get("SR", sr)["PBDs"]
            if self.database.get("PBD", pbd)["currently_attached"]
        }
        return [host for host in self.hosts if host.ref in seeing and host.up]

    def require_host_of(self, sr: str) -> None:
        """Raises HOST_OFFLINE if no running host sees the SR (xen-api ocaml/xapi/message_forwarding.ml)."""
        pbds = self.database.get("SR", sr)["PBDs"]
        if pbds and not self.hosts_seeing(sr):
            raise Failure("HOST_OFFLINE", self.database.get("PBD", pbds[0])["host"])

    def sm_features(self, sr: str) -> dict[str, int]:
        """What the driver of the SR can do."""
        kind = self.database.get("SR", sr)["type"]
        for _, record in self.database.items("SM"):
            if record["type"] == kind:
                features: dict[str, int] = record["features"]
                return features
        return {}

    def attached(self, vdi: str) -> list[Record]:
        """The VBDs that are plugged to a VDI."""
        vbds = (self.database.find("VBD", ref) for ref in self.database.get("VDI", vdi)["VBDs"])
        return [vbd for vbd in vbds if vbd is not None and vbd["currently_attached"]]

    def plug(self, vbd: str, attached: bool) -> None:
        """Set whether a VBD is attached, and let its VDI's record follow."""
        self.database.update("VBD", vbd, currently_attached=attached)
        vdi = self.database.get("VBD", vbd)["VDI"]
        if self.database.exists("VDI", vdi):
            self.database.touch("VDI", vdi)

    def control_domain_vbd(self, vdi: str, host: Host, mode: str, task: str = NULL) -> str:
        """Plug a VDI into a host's control domain; returns the VBD."""
        dom0 = self.database.get("host", host.ref)["control_domain"]
        taken = {self.database.get("VBD", vbd)["userdevice"] for vbd in self.database.get("VM", dom0)["VBDs"]}
        number = next(str(n) for n in range(1 << 16) if str(n) not in taken)
        vbd = self.database.create(
            "VBD",
            {
                "VM": dom0,
                "VDI": vdi,
                "userdevice": number,
                "device": f"sm/backend/{uuids.uuid4()}",
                "mode": mode,
                "other_config": {"task_id": task} if task != NULL else {},
            },
        )
        self.plug(vbd, True)
        return vbd

    def unplug_and_destroy(self, vbd: str) -> None:
        """Take a VBD of a control domain away, if it is still there."""
        if self.database.exists("VBD", vbd):
            self.plug(vbd, False)
            self.database.destroy("VBD", vbd)

    def message(self, name: str, cls: str, uuid: str, body: str, priority: int = 3) -> str:
        """Leave a message for the operator, as the servers do when something happens on its own."""
        fields = {"name": name, "cls": cls, "obj_uuid": uuid, "body": body, "priority": priority, "timestamp": now()}
        return self.database.create("message", fields)
