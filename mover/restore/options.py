"""What a restore to a pool can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RestoreOptions:
    """`sr` and `networks` are names or UUIDs; `disks` positions, names or UUIDs (empty: all).

    `new_macs` None follows the rule: new ones if the VM is still there, else the original ones.
    """

    sr: str | None = None
    name: str | None = None
    disks: tuple[str, ...] = ()
    new_macs: bool | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
