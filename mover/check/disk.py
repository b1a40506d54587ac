"""What holds for one disk: its SR, CBT, its chain, and what the next run would do with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mover.backup.health import CHAIN_LIMIT, LONG_CHAIN, chain_of, room_in
from mover.check.finding import Finding, Level
from mover.check.inventory import Inventory
from mover.explain import DiskOutlook
from mover.job import SelectedDisk, SelectedVm
from mover.job.select import Record
from mover.units import format_size


@dataclass(frozen=True)
class _Says:
    """Makes findings about one disk."""

    vm: str
    disk: str

    def __call__(self, level: Level, check: str, what: str, fix: str | None = None) -> Finding:
        return Finding(level=level, check=check, what=what, vm=self.vm, disk=self.disk, fix=fix)


def check_disk(stock: Inventory, vm: SelectedVm, disk: SelectedDisk, outlook: DiskOutlook) -> Iterator[Finding]:
    """Look at everything about a disk that the pool's records tell."""
    says = _Says(vm.name, disk.position)
    record = stock.get("VDI", disk.vdi)
    sr = stock.get("SR", record.get("SR", ""))
    yield from _storage(says, stock, record, sr, disk)
    if vm.backup.strategy == "cbt":
        yield from _tracking(says, stock, record, sr)
        yield from _way(says, stock, record)
    yield from _chain(says, stock, disk.vdi)
    yield _outlook(says, outlook)


def _storage(says: _Says, stock: Inventory, vdi: Record, sr: Record, disk: SelectedDisk) -> Iterator[Finding]:
    name = sr.get("name_label", "?")
    if not stock.hosts_seeing(vdi.get("SR", "")):
        yield says("error", "sr", f"no host has the SR {name} plugged: the disk cannot be read", "xe pbd-plug uuid=…")
        return
    if vdi.get("sharable"):
        yield says("error", "sr", "the disk is sharable: the pool takes no snapshot of it", _leave_out(disk))
    if "vdi_snapshot" not in sr.get("allowed_operations", ["vdi_snapshot"]):
        yield says("error", "sr", f"the SR {name} ({sr.get('type')}) cannot take snapshots", _leave_out(disk))
    room = room_in(sr, disk.size)
    if room is not None and room.free < max(room.wanted, room.none):
        refused = " and the run refuses to take one" if room.free < room.none else ""
        yield says(
            "error" if refused else "warning",
            "sr",
            f"the SR {name} has {format_size(room.free)} free; a snapshot wants {format_size(room.wanted)}, or fails "
            f"with SR_BACKEND_FAILURE_44{refused}",
            "make room there, or delete snapshots and let the SR coalesce",
        )


def _tracking(says: _Says, stock: Inventory, vdi: Record, sr: Record) -> Iterator[Finding]:
    if "cbt_enabled" not in vdi:
        return  # A release from before CBT: said once, of the pool.
    says_cbt = partial(says, check="cbt")
    if vdi["cbt_enabled"]:
        yield says_cbt("ok", what="CBT is on")
    elif "vdi_enable_cbt" not in sr.get("allowed_operations", ()):
        yield says_cbt(
            "warning",
            what=f"the SR {sr.get('name_label', '?')} ({sr.get('type')}) has no CBT: read in full by every run",
            fix="move the disk to an SR with CBT (ext, nfs, smb, lvm, lvmoiscsi, lvmohba)",
        )
    elif vdi["type"] not in ("user", "system"):
        yield says_cbt(
            "warning", what=f"there is no CBT for disks of the type {vdi['type']}: read in full by every run"
        )
    elif vdi.get("on_boot") == "reset":
        yield says_cbt(
            "warning",
            what="the disk is reset at boot (on_boot): neither CBT nor a snapshot of it is possible",
            fix=f"xe vdi-param-set on-boot=persist uuid={vdi['uuid']}",
        )
    elif stock.pool.get("restrictions", {}).get("restrict_cbt") != "false":
        yield says_cbt("warning", what="CBT is off, and the licence seems not to allow it: read in full by every run")
    else:
        yield says_cbt("info", what="CBT is off; the next run turns it on and reads in full")


def _chain(says: _Says, stock: Inventory, ref: str) -> Iterator[Finding]:
    depth, exact, _ = chain_of(stock.records, ref)
    if depth < LONG_CHAIN:
        return
    yield says(
        "error" if exact and depth >= CHAIN_LIMIT else "warning",
        "chain",
        f"the disk's chain has {'' if exact else 'up to '}{depth} images; at {CHAIN_LIMIT} the pool takes no more "
        "snapshots of it (SR_BACKEND_FAILURE_109)",
        "delete snapshots of this VM and let the SR coalesce (xe sr-scan)",
    )


def _way(says: _Says, stock: Inventory, vdi: Record) -> Iterator[Finding]:
    """A purpose is there, but no host that sees this disk has an address on that network."""
    secure, plain = stock.networks_for("nbd"), stock.networks_for("insecure_nbd")
    hosts = stock.hosts_seeing(vdi.get("SR", ""))
    if not hosts or bool(secure) == bool(plain) or any(stock.has_address(host, secure or plain) for host in hosts):
        return
    names = ", ".join(stock.name("host", host) for host in hosts)
    network = (secure or plain)[0]
    yield says(
        "warning",
        "nbd-reach",
        f"no host that sees this disk ({names}) has an address on the network {network['name_label']}: read in full "
        "over HTTP by every run",
        "give these hosts an address there (xe pif-reconfigure-ip), or another network of theirs the purpose nbd",
    )


def _outlook(says: _Says, outlook: DiskOutlook) -> Finding:
    why = f": {outlook.reason}" if outlook.reason else ""
    much = "" if outlook.to_read is None else f", about {format_size(outlook.to_read)} ({outlook.estimate})"
    return says("info", "outlook", f"would be read {_modes[outlook.mode]} over {outlook.over}{much}{why}")


_modes = {"full": "in full", "incremental": "incrementally"}


def _leave_out(disk: SelectedDisk) -> str:
    return f"exclude-disks = [{disk.position}] in [[vms]]"
