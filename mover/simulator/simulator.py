"""A pool on this machine: hosts with HTTP servers and NBD daemons, one database, one storage repository.

Host 0 is the master. Every host has an address of its own on the loopback network. State is kept in a folder: what is
lasting in a real pool lasts here, sessions and tasks do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from types import TracebackType

from mover.simulator import founding, persistence, vdi, vm_rules
from mover.simulator.attachment import Attachments
from mover.simulator.busy import Busy
from mover.simulator.cbt_calls import CbtCalls
from mover.simulator.certificate import host_certificate
from mover.simulator.context import Context
from mover.simulator.database import Database
from mover.simulator.devices import VbdCalls, VifCalls
from mover.simulator.dispatch import Caller, Dispatcher
from mover.simulator.events import EventCalls
from mover.simulator.failure import Failure
from mover.simulator.faults import Faults
from mover.simulator.guest import Guest
from mover.simulator.http import Routes
from mover.simulator.management import HostCalls, MessageCalls, NetworkCalls, PurposeCalls, SessionCalls, TaskCalls
from mover.simulator.nbd import Mode, NbdDaemon, Network
from mover.simulator.options import Options
from mover.simulator.persistence import Persistence
from mover.simulator.pool import Host, Pool
from mover.simulator.records import RecordCalls
from mover.simulator.rpc import RpcEndpoints
from mover.simulator.server import HttpServer
from mover.simulator.sessions import Sessions
from mover.simulator.signature import Bound, call, calls_of
from mover.simulator.sr import SrCalls
from mover.simulator.storage import Disks
from mover.simulator.tasks import Tasks
from mover.simulator.transfers import TransferHandlers
from mover.simulator.values import Record
from mover.simulator.vdi import VdiCalls
from mover.simulator.vm import VmCalls
from mover.simulator.vm_snapshot import (
    OldVmSnapshotCalls,
    QuiesceCalls,
    RemovedQuiesceCalls,
    VmCopyCalls,
    VmSnapshotCalls,
)
from mover.simulator.vm_transfers import VmTransferHandlers
from mover.simulator.vtpm import VtpmCalls

_STATE = "pool.json"


class CertificateCalls:
    """Where a client learns the certificates of hosts, over a connection that it trusts already."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("host.get_server_certificate(host: host ref) -> string")
    def get_server_certificate(self, context: Context, host: str) -> str:
        """The PEM certificate."""
        self._pool.database.get("host", host)
        return self._pool.host(host).certificate.pem


class _HostServers:
    """The servers of one host."""

    def __init__(self, pool: Pool, host: Host, number: int, network: Network, dispatcher: Dispatcher) -> None:
        self.host = host
        self._pool = pool
        self._routes = Routes()
        self.attachments = Attachments(pool, host)
        self.nbd = NbdDaemon(
            host.address,
            self.attachments.for_nbd,
            pool.faults,
            context=host.certificate.context(tls12_only=True),
            mode=self._nbd_mode,
            network=network,
            host=number,
        )
        RpcEndpoints(dispatcher, self._caller, self._early).add_to(self._routes)
        ids = count(1)
        transfers = TransferHandlers(pool, host, self.attachments, ids)
        transfers.add_to(self._routes)
        VmTransferHandlers(pool, host, self.attachments, ids, transfers).add_to(self._routes)
        self.http = HttpServer(
            self._routes, pool.group, pool.options.head_timeout, lambda: number in pool.faults.hosts_down
        )

    async def start(self) -> None:
        """Listen; a host that comes back keeps its ports."""
        context = self.host.certificate.context() if self._pool.options.tls else None
        await self.http.start(self.host.address, self.host.port, context)
        self.host.port = self.http.port
        self.nbd.port = self.host.nbd_port
        await self.nbd.start(self._pool.group)
        self.host.nbd_port = self.nbd.port
        self.host.up = True

    async def stop(self) -> None:
        """Stop listening, cut what is there, detach all disks."""
        self.host.up = False
        await self.nbd.stop()
        await self.http.stop()
        await self.attachments.stop()

    def _caller(self) -> Caller:
        master = self._pool.master
        return Caller(self.host.ref, None if self.host is master else master.authority())

    def _early(self) -> Failure | None:
        return Failure("HOST_STILL_BOOTING") if self.host.booting else None

    def _nbd_mode(self) -> Mode:
        purposes = {purpose for _, record in self._pool.database.items("network") for purpose in record["purpose"]}
        kinds = purposes & {"nbd", "insecure_nbd"}
        return "tls" if kinds == {"nbd"} else "plain" if kinds == {"insecure_nbd"} else "closed"


class Simulator:
    """A context manager; in the block the pool runs. The attributes are there from its beginning.

    `directory` holds its state and is made if it is not there. Several pools at once need directories of their own.
    """

    pool: Pool
    calls: Dispatcher
    _hosts: list[_HostServers]

    def __init__(self, directory: Path, options: Options | None = None) -> None:
        self.options = options or Options()
        self.directory = directory
        self.faults = Faults()
        self.network = Network(self.options.nbd_latency, self.options.nbd_bandwidth)
        self.guests: dict[str, Guest] = {}
        self._hosts = []
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """The master's."""
        return self.url_of(0)

    def url_of(self, number: int) -> str:
        """That of a host."""
        return f"http{'s' if self.options.tls else ''}://{self.pool.hosts[number].authority()}"

    @property
    def username(self) -> str:
        """Who may log in."""
        return self.options.username

    @property
    def password(self) -> str:
        """With which password."""
        return self.options.password

    @property
    def fingerprint(self) -> str:
        """`sha256:…` of the master's certificate."""
        return self.pool.master.certificate.fingerprint

    @property
    def fingerprints(self) -> list[str]:
        """Those of all hosts."""
        return [host.certificate.fingerprint for host in self.pool.hosts]

    @property
    def disks(self) -> Disks:
        """What is stored."""
        return self.pool.disks

    async def __aenter__(self) -> Simulator:
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self.pool = self._open(group)
            stack.callback(self.pool.disks.close)
            saved = Persistence(self.pool.database, self.directory / _STATE)
            self.calls = dispatcher = self._dispatcher(group)
            stack.push_async_callback(dispatcher.stop)
            for number, host in enumerate(self.pool.hosts):
                servers = _HostServers(self.pool, host, number, self.network, dispatcher)
                stack.push_async_callback(servers.stop)
                await servers.start()
                self._hosts.append(servers)
            self._found()
            saved.start()
            stack.callback(saved.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    # -- for tests, the demo, and whoever plays ----------------------------------------------------------------------

    def make_vm(
        self,
        name: str,
        sizes: Sequence[int],
        *,
        names: Sequence[str] = (),
        sr: str | None = None,
        uefi: bool = True,
        power_state: str = "Running",
    ) -> str:
        """Make a VM with empty disks of these sizes in bytes, called `names`. Returns its reference."""
        database = self.pool.database
        labels = names or [f"{name} disk {number}" for number in range(len(sizes))]
        where = sr or next(record["default_SR"] for _, record in database.items("pool"))
        vdis = [self._make_vdi(where, label, size) for label, size in zip(labels, sizes, strict=True)]
        return founding.make_vm(database, name, vdis, uefi=uefi, power_state=power_state)

    def vdis_of(self, vm: str) -> list[str]:
        """The UUIDs of a VM's disks, by position."""
        database = self.pool.database
        vbds = [database.get("VBD", vbd) for vbd in database.get("VM", vm)["VBDs"]]
        disks = sorted((vbd for vbd in vbds if vbd["type"] == "Disk"), key=lambda vbd: int(vbd["userdevice"]))
        return [database.get("VDI", vbd["VDI"])["uuid"] for vbd in disks]

    def guest(self, vdi: str) -> Guest:
        """The guest that writes to the disk with this UUID."""
        if vdi not in self.guests:
            self.guests[vdi] = Guest(self.disks, vdi, seed=len(self.guests))
        return self.guests[vdi]

    def expire_sessions(self) -> None:
        """Every session is invalid from now on."""
        self.pool.sessions.expire_all()

    def restart_toolstack(self) -> None:
        """Sessions and tasks are gone, connections for calls are cut; NBD goes on."""
        self.pool.tasks.drop_all()
        self.pool.sessions.expire_all()
        for servers in self._hosts:
            servers.http.cut()

    async def stop_host(self, number: int) -> None:
        """A host goes down: nobody is served there, and its disks are detached."""
        await self._hosts[number].stop()

    async def start_host(self, number: int) -> None:
        """It comes back, on the same ports."""
        await self._hosts[number].start()

    def crash_disk(self, vdi: str) -> None:
        """The host of a running VM died while the disk with this UUID was open: its CBT log is not to be trusted."""
        self.disks.crash(vdi)
        ref = self.pool.database.by_uuid("VDI", vdi)
        self.disks.activate(vdi)
        self.pool.database.update("VDI", ref, cbt_enabled=self.disks.cbt_enabled(vdi))
        if not self.disks.cbt_enabled(vdi):
            self.pool.message("VDI_CBT_METADATA_INCONSISTENT", "VDI", vdi, "")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open(self, group: asyncio.TaskGroup) -> Pool:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / _STATE
        database = persistence.load(path) if path.exists() else Database()
        sessions = Sessions(database, self.options)
        pool = Pool(
            options=self.options,
            database=database,
            disks=Disks(self.directory / "disks"),
            faults=self.faults,
            sessions=sessions,
            tasks=Tasks(database, sessions),
            busy=Busy(database, self.options.durations),
            group=group,
        )
        for number in range(self.options.hosts):
            address = f"127.0.0.{number + 1}"
            certificate = host_certificate(
                self.directory / f"host-{number + 1}.pem", founding.hostname(number), address
            )
            pool.hosts.append(Host(ref="", address=address, certificate=certificate))
        if path.exists():
            founding.find_hosts(database, pool.hosts)
        else:
            founding.found_pool(database, self.options, pool.hosts)
        database.derive("VM", lambda record: {"allowed_operations": vm_rules.allowed_operations(record)})
        database.derive("VDI", lambda record: {"allowed_operations": vdi.allowed_operations(database, record)})
        return pool

    def _found(self) -> None:
        """Ports are known now. A real host's address has none, since everybody's is 443."""
        for host in self.pool.hosts:
            self.pool.database.update("host", host.ref, address=host.authority())
        # What a crash of the process left attached to control domains is gone, as after a reboot.
        for ref, record in self.pool.database.items("VBD"):
            vm = self.pool.database.find("VM", record["VM"])
            if vm is not None and vm["is_control_domain"]:
                self.pool.unplug_and_destroy(ref)

    def _dispatcher(self, group: asyncio.TaskGroup) -> Dispatcher:
        pool, release = self.pool, self.options.release
        hidden = frozenset() if release.cbt else frozenset({("VDI", "cbt_enabled"), ("network", "purpose")})
        records = RecordCalls(pool.database, hidden)
        holders: list[object] = [
            SessionCalls(pool),
            TaskCalls(pool),
            MessageCalls(pool),
            NetworkCalls(pool),
            HostCalls(pool, self.restart_toolstack),
            CertificateCalls(pool),
            EventCalls(pool.database, pool.sessions.alive, records.record),
            VmCalls(pool),
            VmCopyCalls(pool),
            VdiCalls(pool),
            VbdCalls(pool),
            VifCalls(pool),
            VtpmCalls(pool),
            SrCalls(pool),
            VmSnapshotCalls(pool) if release.snapshot_ignores_disks else OldVmSnapshotCalls(pool),
        ]
        holders += [QuiesceCalls(pool) if release.quiesce else RemovedQuiesceCalls()]
        holders += [CbtCalls(pool), PurposeCalls(pool)] if release.cbt else []
        # What is written out wins over what is made from the fields.
        bound: list[Bound] = [*records.bound(), *(entry for holder in holders for entry in calls_of(holder))]
        return Dispatcher(bound, pool.sessions, pool.tasks, group, self._fault)

    def _fault(self, method: str) -> Failure | None:
        fault = self.faults.take_call(method)
        return Failure(fault.code, *fault.params) if fault else None

    def _make_vdi(self, sr: str, name: str, size: int) -> str:
        database = self.pool.database
        fields: Record = {"SR": sr, "name_label": name, "virtual_size": size, "type": "user"}
        vdi = database.create("VDI", fields)
        uuid = database.get("VDI", vdi)["uuid"]
        database.update("VDI", vdi, location=uuid)
        self.disks.create(uuid, size)
        return vdi
