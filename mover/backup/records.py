"""What the pool says of its VMs, drives and disks, read once when a run begins.

A run looks things up here that only it or earlier runs of its job change, so that a thousand VMs do not cost a thousand
readings of everything. What others may change meanwhile is asked for when it is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mover.job import Records
from mover.job.select import Record
from protocol.errors import XapiError
from protocol.xapi import Pool


@dataclass(frozen=True)
class PoolRecords:
    """Records by ref, as `get_all_records` gives them."""

    vms: Records
    vbds: Records
    vdis: Records

    @cached_property
    def vdi_by_uuid(self) -> dict[str, Record]:
        """The VDIs by UUID."""
        return {record["uuid"]: record for record in self.vdis.values()}

    @cached_property
    def children(self) -> Counter[str]:
        """By the UUID of an image, how many others have it as their parent."""
        return Counter(parent for record in self.vdis.values() if (parent := parent_of(record)))

    def disks_of(self, vm: Record) -> list[str]:
        """The VDIs (refs) in the drives of a VM, and the image of its memory."""
        drives = [self.vbds[vbd]["VDI"] for vbd in vm["VBDs"] if vbd in self.vbds]
        return [ref for ref in (*drives, vm["suspend_VDI"]) if ref in self.vdis]


def parent_of(vdi: Record) -> str | None:
    """The UUID of the image under that of a VDI; SRs of the VHD kind say it (sm libs/sm/VDI.py, `vhd-parent`)."""
    return vdi.get("sm_config", {}).get("vhd-parent") or None


async def read_records(pool: Pool) -> PoolRecords:
    """Ask the pool. Raises what `Pool.call` raises."""
    vms, vbds, vdis = [await pool.call(f"{kind}.get_all_records") for kind in ("VM", "VBD", "VDI")]
    return PoolRecords(vms, vbds, vdis)


async def records_of(pool: Pool, kind: str, refs: Iterable[str]) -> dict[str, Record]:
    """The records of these objects (refs) as they are now, without those that are gone. Raises as `Pool.call` does."""
    found: dict[str, Record] = {}
    for ref in dict.fromkeys(refs):
        try:
            found[ref] = await pool.call(f"{kind}.get_record", ref)
        except XapiError as error:
            # It vanished between the list and the look, and is no longer part of the VM then.
            if error.code != "HANDLE_INVALID":
                raise
    return found
