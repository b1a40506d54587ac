"""What a restore to a pool can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# api: VM.create and a VHD stream for each disk. xva: one XVA with everything. replay: the XVA of the last full, then
# what has changed since into each disk.
Via = Literal["api", "xva", "replay"]


@dataclass(frozen=True)
class RestoreOptions:
    """`sr` and `networks` are names or UUIDs; `disks` positions, names or UUIDs (empty: all).

    `via` None is the way of the backup: an XVA for strategy `xva`. `template` makes a template instead of a VM.
    `keep_partial` leaves what a failed restore made. `new_macs` None follows the rule: new ones if the VM is still
    there, or one that has its addresses, else the original ones.
    """

    sr: str | None = None
    name: str | None = None
    disks: tuple[str, ...] = ()
    new_macs: bool | None = None
    via: Via | None = None
    template: bool = False
    keep_partial: bool = False
    networks: Mapping[str, str] = field(default_factory=dict)
