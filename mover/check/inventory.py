"""The records of a pool that checks look at, read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mover.backup.records import PoolRecords
from mover.job.select import Record, Records
from protocol.errors import XapiError
from protocol.xapi import Pool

_KINDS = ("VM", "VBD", "VDI", "SR", "PBD", "network", "PIF", "host", "pool")


@dataclass(frozen=True)
class Inventory:
    """Records by kind and reference, as `get_all_records` gives them. Old releases lack some fields."""

    kinds: Mapping[str, Records]

    def all(self, kind: str) -> Records:
        """Those of a kind."""
        return self.kinds[kind]

    def get(self, kind: str, ref: str) -> Record:
        """One of them; an empty one if it is gone."""
        return self.kinds[kind].get(ref, {})

    def hosts_seeing(self, sr: str) -> list[str]:
        """The hosts (refs) that have an SR plugged."""
        return [pbd["host"] for pbd in self.all("PBD").values() if pbd["SR"] == sr and pbd["currently_attached"]]

    def has_address(self, host: str, networks: Collection[Record]) -> bool:
        """Whether a host can be reached on one of some networks."""
        uuids = {network["uuid"] for network in networks}
        return any(
            pif["host"] == host
            and pif["currently_attached"]
            and (pif["IP"] or any(pif.get("IPv6", ())))
            and self.get("network", pif["network"]).get("uuid") in uuids
            for pif in self.all("PIF").values()
        )

    def name(self, kind: str, ref: str) -> str:
        """What people call an object."""
        return str(self.get(kind, ref).get("name_label", ref))

    def networks_for(self, purpose: str) -> list[Record]:
        """The networks with a purpose."""
        return [network for network in self.all("network").values() if purpose in network.get("purpose", ())]

    @cached_property
    def records(self) -> PoolRecords:
        """Those of VMs, drives and disks, as a run has them."""
        return PoolRecords(self.all("VM"), self.all("VBD"), self.all("VDI"))

    @property
    def pool(self) -> Record:
        """The pool's own record."""
        return next(iter(self.all("pool").values()), {})


async def take_stock(pool: Pool) -> Inventory:
    """Read all of it. Raises what `Pool.call` raises."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in _KINDS:
        try:
            kinds[kind] = await pool.call(f"{kind}.get_all_records")
        except XapiError as error:
            if error.code != "MESSAGE_METHOD_UNKNOWN":
                raise
            kinds[kind] = {}
    return Inventory(kinds)
