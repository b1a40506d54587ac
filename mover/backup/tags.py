"""Whose snapshot is it: what this program writes into `other_config` of what it creates on a pool."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "mover:"


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

    def owns(self, other_config: dict[str, str], vm: str) -> bool:
        """Whether these are the tags of a snapshot that this owner made of the VM with UUID `vm`."""
        return (
            other_config.get(f"{PREFIX}job") == self.job
            and other_config.get(f"{PREFIX}store") == self.store
            and other_config.get(f"{PREFIX}vm") == vm
        )


def without_tags(other_config: dict[str, str]) -> dict[str, str]:
    """`other_config` without anything of ours: snapshots inherit it from their VM, and restored VMs must not."""
    return {key: value for key, value in other_config.items() if not key.startswith(PREFIX)}
