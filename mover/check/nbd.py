"""Can this machine talk to the hosts' NBD servers, are they who the pool says, and are connections free?"""

from __future__ import annotations

from collections.abc import Iterable

from mover.check.finding import Finding
from mover.check.inventory import Inventory
from protocol.errors import NbdCertificateError, NbdConnectError
from protocol.nbd import Endpoint
from protocol.nbd.probe import probe
from protocol.tasks import task_group

# xapi-nbd's own limit, for all clients of a host together (xen-api ocaml/nbd/lib/consts.ml).
_CONNECTIONS = 16
_TIMEOUT = 10.0


async def check_servers(endpoints: Iterable[Endpoint], wanted: int, stock: Inventory) -> list[Finding]:
    """Knock at each address once. `wanted` is how many connections to a host the job allows itself."""
    by_server = {endpoint.server: endpoint for endpoint in endpoints}
    async with task_group() as group:
        knocks = [group.create_task(_knock(endpoint)) for endpoint in by_server.values()]
    findings = [knock.result() for knock in knocks]
    return findings + _taken(stock, wanted)


async def _knock(endpoint: Endpoint) -> Finding:
    try:
        await probe(endpoint, _TIMEOUT)
    except NbdCertificateError as error:
        return Finding(
            level="error",
            check="certificate",
            what=str(error),
            fix="somebody else answers at this address; the pool's own certificate was expected",
        )
    except NbdConnectError as error:
        return Finding(
            level="warning",
            check="nbd-server",
            what=f"{error}: disks are read from the hosts that do answer, and not at all if none does",
            fix="open TCP port 10809 from this machine to the hosts; at most 16 connections go to a host at once",
        )
    how = "plain" if endpoint.certificate is None else "TLS, with the certificate that the pool names"
    return Finding(level="ok", check="nbd-server", what=f"{endpoint.server} answers ({how})")


def _taken(stock: Inventory, wanted: int) -> list[Finding]:
    """Each NBD connection is a disk plugged into a control domain, so the pool's records tell how many there are."""
    taken: dict[str, int] = {}
    for vbd in stock.all("VBD").values():
        domain = stock.get("VM", vbd["VM"])
        if domain.get("is_control_domain") and vbd["currently_attached"] and vbd["type"] == "Disk":
            taken[domain["resident_on"]] = taken.get(domain["resident_on"], 0) + 1
    return [
        Finding(
            level="warning",
            check="nbd-connections",
            what=f"{count} disks are plugged into the control domain of {stock.name('host', host)}, so about "
            f"{max(_CONNECTIONS - count, 0)} of its {_CONNECTIONS} NBD connections are free; the job takes up to "
            f"{wanted}",
            fix="wait for what else reads there, or lower nbd-connections-per-host in [limits]",
        )
        for host, count in taken.items()
        if _CONNECTIONS - count < wanted
    ]
