"""Whose snapshot is it: what this program writes into `other_config` of what it creates on a pool.

The pool copies `other_config` whenever it snapshots or clones: a VM that was reverted to a snapshot of ours has our
tags on its disks, and whatever its user makes of them inherits these. So one tag names the object that it was written
on, and tags count only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "mover:"
_JOB, _STORE, _VM, _RUN = (f"{PREFIX}{key}" for key in ("job", "store", "vm", "run"))
# The UUID of the very VM or VDI that has the tags.
_SELF = f"{PREFIX}self"
_BLOCKED = " is backing it up"
# What others write to know their own snapshots by. A snapshot of ours inherits it from the VM: theirs it is not.
_OTHERS = ("xo:backup:", "xo:base_delta", "xo:copy_of", "xo:import:")


@dataclass(frozen=True)
class Owner:
    """The job and store that a snapshot belongs to. Two jobs, or one job with two stores, leave each other alone."""

    job: str
    store: str

    def tags(self, *, vm: str, run: str) -> dict[str, str]:
        """The entries for a snapshot of the VM with UUID `vm`, made by `run`."""
        return {_JOB: self.job, _STORE: self.store, _VM: vm, _RUN: run}

    def snapshot_name(self, run: str) -> str:
        """The name of a snapshot made by `run`. A run may be killed before it can tag: then the name tells."""
        return f"{self._name_prefix}{run}"

    def named(self, name: str) -> bool:
        """Whether `name` is one that `snapshot_name` gives."""
        return name.startswith(self._name_prefix)

    def block_reason(self, run: str) -> str:
        """Why a VM may not be migrated while `run` backs it up."""
        return f"{self.snapshot_name(run)}{_BLOCKED}"

    def blocked(self, reason: str) -> bool:
        """Whether `reason` is one that `block_reason` gives."""
        return self.named(reason) and reason.endswith(_BLOCKED)

    @property
    def _name_prefix(self) -> str:
        return f"mover {self.job} {self.store[:8]} "

    def owns_vm(self, record: Mapping[str, Any], vm: str, live: str | None) -> bool:
        """Whether a VM's record is a snapshot that this owner made of the VM with UUID `vm`.

        `live` is the UUID of the VM that it is a snapshot of. Its name tells, too: a run may be killed before it can
        tag, and earlier versions did not say what their tags were written on.
        """
        if not record["is_a_snapshot"]:
            return False
        return self._tagged(record, vm) or (live == vm and self.named(record["name_label"]))

    def owns_disk(self, record: Mapping[str, Any], vm: str) -> bool:
        """Whether a VDI's record is a snapshot that this owner made of a disk of the VM with UUID `vm`.

        There may be more: those in the drives of a snapshot VM of this owner.
        """
        return bool(record["is_a_snapshot"]) and (self._tagged(record, vm) or self._tagged_before(record, vm))

    def _tagged(self, record: Mapping[str, Any], vm: str) -> bool:
        other_config = record["other_config"]
        return self._claims(other_config, vm) and other_config.get(_SELF) == record["uuid"]

    def _tagged_before(self, disk: Mapping[str, Any], vm: str) -> bool:
        """Whether these are tags of an earlier version, and not inherited as far as anybody can tell.

        With data and without a VM, it may be what a user has made. With a CBT log alone there is nothing to lose, but
        the log may be what another product needs.
        """
        other_config = disk["other_config"]
        alone = disk["type"] == "cbt_metadata" and not disk["VBDs"]
        others = any(key.startswith(_OTHERS) for key in other_config)
        return alone and not others and _SELF not in other_config and self._claims(other_config, vm)

    def _claims(self, other_config: Mapping[str, str], vm: str) -> bool:
        """Whether these tags speak of a snapshot that this owner made of the VM; they may be inherited."""
        return claimed(other_config) == self and other_config.get(_VM) == vm


def claimed(other_config: Mapping[str, str]) -> Owner | None:
    """Of whom these tags speak, whether they are inherited or not."""
    job, store = other_config.get(_JOB), other_config.get(_STORE)
    return Owner(job, store) if job and store else None


def as_ours(other_config: dict[str, str], tags: dict[str, str], uuid: str) -> dict[str, str]:
    """What the snapshot `uuid` has inherited, without what makes it somebody else's, and with `tags`."""
    inherited = without_tags(other_config).items()
    return {key: value for key, value in inherited if not key.startswith(_OTHERS)} | tags | {_SELF: uuid}


def without_blocks(blocked: dict[str, str]) -> dict[str, str]:
    """`blocked_operations` without what a backup has blocked for its time: it must not hold for what is restored."""
    return {
        operation: reason
        for operation, reason in blocked.items()
        if not (reason.startswith("mover ") and reason.endswith(_BLOCKED))
    }


def without_tags(other_config: dict[str, str]) -> dict[str, str]:
    """`other_config` without anything of ours: snapshots inherit it from their VM, and restored VMs must not."""
    return {key: value for key, value in other_config.items() if not key.startswith(PREFIX)}
