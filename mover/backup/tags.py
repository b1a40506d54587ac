"""Whose snapshot is it: what this program writes into `other_config` of what it creates on a pool."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "mover:"
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
        return {
            f"{PREFIX}job": self.job,
            f"{PREFIX}store": self.store,
            f"{PREFIX}vm": vm,
            f"{PREFIX}run": run,
        }

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

    def owns(self, other_config: dict[str, str], vm: str) -> bool:
        """Whether these are the tags of a snapshot that this owner made of the VM with UUID `vm`."""
        return (
            other_config.get(f"{PREFIX}job") == self.job
            and other_config.get(f"{PREFIX}store") == self.store
            and other_config.get(f"{PREFIX}vm") == vm
        )


def as_ours(other_config: dict[str, str], tags: dict[str, str]) -> dict[str, str]:
    """What a snapshot has inherited from its VM, without what makes it somebody else's, and with `tags`."""
    inherited = without_tags(other_config).items()
    return {key: value for key, value in inherited if not key.startswith(_OTHERS)} | tags


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
