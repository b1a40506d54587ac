"""Which VMs of a pool a job means, and which of their disks. Pure functions over API records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mover.job.model import BackupSection, ExcludeSection, Job, SelectorSection, backup_keys

Record = dict[str, Any]
Records = Mapping[str, Record]


@dataclass(frozen=True)
class SelectedDisk:
    """A disk of a VM: `position` is its userdevice, `vdi` the live VDI's ref; `cbt` whether CBT is on."""

    position: str
    name: str
    vdi: str
    vdi_uuid: str
    size: int
    cbt: bool


@dataclass(frozen=True)
class SelectedVm:
    """A VM to back up, how, and its disks, in order of position; `exclude_disks` are the rules for those left out."""

    ref: str
    uuid: str
    name: str
    backup: BackupSection
    disks: tuple[SelectedDisk, ...]
    excluded_disks: tuple[SelectedDisk, ...]
    exclude_disks: tuple[str, ...]


def select_vms(job: Job, vms: Records, vbds: Records, vdis: Records) -> list[SelectedVm]:
    """The VMs that `job` selects, by name.

    Where several selectors match one VM, each key has the value of the first of them that gives it; the disks that any
    of them excludes are left out.

    Snapshots, templates and control domains are never selected.
    """
    selected: list[SelectedVm] = []
    for ref, vm in vms.items():
        if vm["is_a_snapshot"] or vm["is_a_template"] or vm["is_control_domain"] or _excluded(job.exclude, vm):
            continue
        matching = [selector for selector in job.vms if _matches(selector, vm)]
        if matching:
            rules = tuple(rule for selector in matching for rule in selector.exclude_disks)
            disks, excluded = disks_of(vm["VBDs"], vbds, vdis, rules)
            selected.append(
                SelectedVm(
                    ref=ref,
                    uuid=vm["uuid"],
                    name=vm["name_label"],
                    backup=_settings(job.backup, matching),
                    disks=disks,
                    excluded_disks=excluded,
                    exclude_disks=rules,
                )
            )
    return sorted(selected, key=lambda vm: (vm.name, vm.uuid))


def _matches(selector: SelectorSection, vm: Record) -> bool:
    if selector.all:
        return True
    if selector.uuid is not None:
        return bool(vm["uuid"] == selector.uuid)
    if selector.tag is not None:
        return selector.tag in vm["tags"]
    return selector.name is not None and _is_named(vm["name_label"], selector.name)


def _excluded(exclude: ExcludeSection, vm: Record) -> bool:
    return (
        any(_is_named(vm["name_label"], pattern) for pattern in exclude.names)
        or vm["uuid"] in exclude.uuids
        or any(tag in vm["tags"] for tag in exclude.tags)
    )


def _is_named(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern with * and ?. Brackets stand for themselves: people put them in names."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _settings(defaults: BackupSection, matching: list[SelectorSection]) -> BackupSection:
    given: dict[str, Any] = {}
    for selector in reversed(matching):
        given |= {name: getattr(selector, name) for name in backup_keys() if name in selector.overrides}
    return dataclasses.replace(defaults, **given)


def disks_of(
    drives: Sequence[str], vbds: Records, vdis: Records, rules: Sequence[str]
) -> tuple[tuple[SelectedDisk, ...], tuple[SelectedDisk, ...]]:
    """The disks in the `drives` of a VM (refs of its VBDs) by position: those to back up, and those `rules` exclude."""
    disks = _disks(drives, vbds, vdis)
    excluded = tuple(disk for disk in disks if _disk_excluded(rules, disk, vdis[disk.vdi]))
    return tuple(disk for disk in disks if disk not in excluded), excluded


def _disks(drives: Sequence[str], vbds: Records, vdis: Records) -> list[SelectedDisk]:
    disks: list[SelectedDisk] = []
    for ref in drives:
        vbd = vbds.get(ref)
        vdi = vdis.get(vbd["VDI"]) if vbd else None
        if vbd is None or vdi is None or vbd["type"] != "Disk" or vbd["empty"]:
            continue
        disks.append(
            SelectedDisk(
                position=vbd["userdevice"],
                name=vdi["name_label"] or f"disk {vbd['userdevice']}",
                vdi=vbd["VDI"],
                vdi_uuid=vdi["uuid"],
                size=int(vdi["virtual_size"]),
                cbt=bool(vdi.get("cbt_enabled", False)),
            )
        )
    return sorted(disks, key=lambda disk: (len(disk.position), disk.position))


def _disk_excluded(rules: Sequence[str], disk: SelectedDisk, vdi: Record) -> bool:
    return any(
        rule in (disk.position, disk.vdi_uuid) or rule in vdi.get("tags", ()) or _is_named(disk.name, rule)
        for rule in rules
    )
