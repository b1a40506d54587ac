"""What holds for a pool as a whole: its release, its licence, its networks for NBD."""

from __future__ import annotations

from collections.abc import Iterator

from mover.check.finding import Finding
from mover.check.inventory import Inventory
from mover.job.select import Record
from protocol.xapi import Pool

# CBT and NBD came with XenServer 7.3 and XCP-ng 7.4 (xen-api ocaml/idl/datamodel_lifecycle.ml, API 2.8).
_CBT_API = (2, 8)


def check_pool(pool: Pool, stock: Inventory, *, by_cbt: bool) -> Iterator[Finding]:
    """Look at the login; and if VMs are backed up `by_cbt`, at release, licence and networks."""
    yield Finding(
        level="ok",
        check="credentials",
        what=f"logged in to {pool.record.name_label or pool.address} at {pool.address}",
    )
    if not by_cbt:
        return
    version = pool.version
    release = f"{version.product} {version.release}"
    if version.api < _CBT_API:
        yield Finding(
            level="warning",
            check="version",
            what=f"{release} has neither CBT nor NBD: every run reads every disk in full over HTTP",
            fix="XenServer 7.3, XCP-ng 7.4 and later have both",
        )
        return
    yield Finding(level="ok", check="version", what=f"{release} has CBT and NBD")
    yield from _licence(stock)
    yield from _purposes(stock)


def _licence(stock: Inventory) -> Iterator[Finding]:
    # A missing key counts as a restriction (xen-api ocaml/xapi-types/features.ml).
    if stock.pool.get("restrictions", {}).get("restrict_cbt") == "false":
        yield Finding(level="ok", check="licence", what="CBT is licensed")
    else:
        yield Finding(
            level="warning",
            check="licence",
            what="the pool's licence seems not to allow CBT (restrict_cbt): turning it on will fail with "
            "LICENCE_RESTRICTION, and disks where it is off are read in full by every run",
            fix="XenServer needs the Premium edition for CBT; XCP-ng needs nothing",
        )


def _purposes(stock: Inventory) -> Iterator[Finding]:
    secure, plain = stock.networks_for("nbd"), stock.networks_for("insecure_nbd")
    if secure and plain:
        remove = "; ".join(_xe("remove", "insecure_nbd", network) for network in plain)
        yield Finding(
            level="error",
            check="nbd-purpose",
            what="there are networks with the purpose nbd and networks with insecure_nbd: with both, the hosts "
            "refuse every NBD connection",
            fix=remove,
        )
    elif plain:
        change = "; ".join(
            f"{_xe('remove', 'insecure_nbd', network)}; {_xe('add', 'nbd', network)}" for network in plain
        )
        yield Finding(
            level="warning",
            check="nbd-purpose",
            what=f"disks cross the network {_names(plain)} in the clear (purpose insecure_nbd)",
            fix=change,
        )
    elif secure:
        yield Finding(level="ok", check="nbd-purpose", what=f"NBD with TLS on the network {_names(secure)}")
    else:
        candidate = next(iter(_with_addresses(stock)), None)
        yield Finding(
            level="warning",
            check="nbd-purpose",
            what="no network of the pool has the purpose nbd: disks are read in full over HTTP by every run",
            fix=_xe("add", "nbd", candidate) if candidate else "give a network with addresses of hosts the purpose nbd",
        )


def _with_addresses(stock: Inventory) -> list[Record]:
    """Networks on which hosts have addresses, those with the fewest management interfaces first."""
    found: dict[str, bool] = {}
    for pif in stock.all("PIF").values():
        if pif.get("currently_attached") and pif.get("IP"):
            found[pif["network"]] = found.get(pif["network"], False) or bool(pif.get("management"))
    networks = [stock.get("network", ref) for ref in sorted(found, key=lambda ref: found[ref])]
    return [network for network in networks if network]


def _names(networks: list[Record]) -> str:
    return ", ".join(network["name_label"] for network in networks)


def _xe(what: str, purpose: str, network: Record) -> str:
    return f"xe network-param-{what} param-name=purpose param-key={purpose} uuid={network['uuid']}"
