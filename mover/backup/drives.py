"""The disks of a VM at its turn: a run may have begun hours before, and since then the VM may have got others.

A VM that was reverted has new disks throughout; what the run read when it began is of none of them.
"""

from __future__ import annotations

import dataclasses

from mover.backup.records import PoolRecords, records_of
from mover.backup.session import Session
from mover.job import Records, SelectedVm, disks_of
from mover.job.select import Record


async def as_it_is_now(session: Session, vm: SelectedVm) -> tuple[Session, SelectedVm]:
    """`vm` with the disks it has by now, chosen by the same rules, and the session with their records.

    Only this VM's few objects are asked for: with thousands of VMs nothing may be read that grows with their number.
    Raises what `Pool.call` raises.
    """
    drives: list[str] = await session.pool.call("VM.get_VBDs", vm.ref)
    vbds = await records_of(session.pool, "VBD", drives)
    vdis = await records_of(session.pool, "VDI", [vbd["VDI"] for vbd in vbds.values() if _holds_disk(vbd)])
    disks, excluded = disks_of(drives, vbds, vdis, vm.exclude_disks)
    return _knowing(session, vbds, vdis), dataclasses.replace(vm, disks=disks, excluded_disks=excluded)


def _holds_disk(vbd: Record) -> bool:
    return bool(vbd["type"] == "Disk" and not vbd["empty"])


def _knowing(session: Session, vbds: Records, vdis: Records) -> Session:
    """The session with these records, if there are new ones among them: all others are as good as when it began."""
    known = session.records
    if vdis.keys() <= known.vdis.keys():
        return session
    records = PoolRecords(known.vms, {**known.vbds, **vbds}, {**known.vdis, **vdis})
    return dataclasses.replace(session, records=records)
