"""What holds for a VM: may it be snapshotted now, and would the job's mode let it be backed up?"""

from __future__ import annotations

from collections.abc import Iterator

from mover.check.disk import check_disk
from mover.check.finding import Finding
from mover.check.inventory import Inventory
from mover.explain import VmOutlook
from mover.job import SelectedVm

_MOVING = ("pool_migrate", "migrate_send")


def check_vm(stock: Inventory, vm: SelectedVm, outlook: VmOutlook) -> Iterator[Finding]:
    """Look at a VM and its disks."""
    record = stock.get("VM", vm.ref)
    reason = record.get("blocked_operations", {}).get("snapshot")
    if reason is not None:
        yield Finding(
            level="error",
            check="vm",
            vm=vm.name,
            what=f"snapshots of it are blocked: {reason or 'no reason given'}",
            fix=f"xe vm-param-remove param-name=blocked-operations param-key=snapshot uuid={vm.uuid}",
        )
    moving = sorted(set(record.get("current_operations", {}).values()) & set(_MOVING))
    if moving:
        yield Finding(
            level="warning", check="vm", vm=vm.name, what=f"it is being moved ({moving[0]})", fix="wait for its end"
        )
    # A missing key counts as a restriction (xen-api ocaml/xapi-types/features.ml).
    if vm.backup.memory and stock.pool.get("restrictions", {}).get("restrict_checkpoint") != "false":
        yield Finding(
            level="warning",
            check="memory",
            vm=vm.name,
            what="the pool's licence seems not to allow snapshots with memory (restrict_checkpoint): its memory will "
            "not be part of the backup",
            fix="memory = false",
        )
    if not vm.disks:
        yield Finding(level="warning", check="vm", vm=vm.name, what="it has no disk that would be backed up")
    for name in outlook.excluded:
        yield Finding(level="info", check="vm", vm=vm.name, what=f"disk {name} is left out by the job")
    if outlook.refused:
        yield Finding(level="error", check="mode", vm=vm.name, what=outlook.refused, fix="mover run with --full")
    for disk, told in zip(vm.disks, outlook.disks, strict=True):
        yield from check_disk(stock, vm, disk, told)
