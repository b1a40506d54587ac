"""Everything a run says, as plain values. Console, JSON lines, logs and reports are views of this one stream.

Sizes are bytes, durations seconds, `time` is Unix time (UTC). A disk is named by its VM's UUID and its position
(`userdevice`); names are for people and not unique.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

Mode = Literal["full", "incremental", "restore", "copy"]
Outcome = Literal["done", "failed", "interrupted"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=False):
    """The common root; `time` is filled in by whoever renders, from the moment the event arrived."""


class RunStarted(Event, frozen=True, kw_only=True, tag="run.started"):
    """The first event of `mover run`: what will be done with which VMs (names)."""

    run: str
    job: str
    schedule: str | None
    action: Literal["backup"]
    vms: list[str]


class VmStarted(Event, frozen=True, kw_only=True, tag="vm.started"):
    """Work on a VM begins."""

    vm: str
    name: str
    strategy: str


class VmFinished(Event, frozen=True, kw_only=True, tag="vm.finished"):
    """What became of a VM: its new restore point, or why there is none."""

    vm: str
    name: str
    outcome: Outcome
    point: str | None = None
    seconds: float = 0.0
    error: str | None = None
    hint: str | None = None


class DiskPlanned(Event, frozen=True, kw_only=True, tag="disk.planned"):
    """How a disk will be read. `reason` says why in full, where an incremental was hoped for."""

    vm: str
    disk: str
    name: str
    size: int
    mode: Mode
    to_read: int
    reason: str | None = None


class DiskProgress(Event, frozen=True, kw_only=True, tag="disk.progress"):
    """Totals so far. `done` counts towards `to_read` of the plan; the rest is what became of those bytes."""

    vm: str
    disk: str
    done: int
    read: int
    zero: int
    known: int
    new: int
    stored: int


class DiskFinished(Event, frozen=True, kw_only=True, tag="disk.finished"):
    """`changed` is what differs from the point before (bytes of chunks); `read` what crossed the wire.

    Of a restore: `read` is what came out of the store, `known` what its files held already.
    """

    vm: str
    disk: str
    name: str
    mode: Mode
    size: int
    changed: int
    read: int
    zero: int
    known: int
    new: int
    stored: int
    seconds: float


class Note(Event, frozen=True, kw_only=True, tag="note"):
    """Something an operator should know."""

    level: Literal["info", "warning"]
    message: str
    vm: str | None = None
    disk: str | None = None


class Retry(Event, frozen=True, kw_only=True, tag="retry"):
    """Something failed and will be tried again."""

    what: str
    server: str
    error: str
    wait: float


class VerifyProgress(Event, frozen=True, kw_only=True, tag="verify.progress"):
    """Bytes of the store checked so far."""

    done: int
    total: int


class DamageFound(Event, frozen=True, kw_only=True, tag="verify.damage"):
    """Something in the store is not what was written.

    `points` are the ids of those that suffer, `disks` the point and the position of each disk that does.
    """

    object: str
    reason: str
    points: list[str]
    disks: list[str] = []


class RunFinished(Event, frozen=True, kw_only=True, tag="run.finished"):
    """The last event of `mover run`; if it failed as a whole, or was interrupted, `error` says why."""

    run: str
    outcome: Outcome | Literal["partial"]
    exit_code: int
    seconds: float
    read: int
    stored: int
    error: str | None = None
    hint: str | None = None


AnyEvent = (
    RunStarted
    | VmStarted
    | VmFinished
    | DiskPlanned
    | DiskProgress
    | DiskFinished
    | Note
    | Retry
    | VerifyProgress
    | DamageFound
    | RunFinished
)
Emit = Callable[[AnyEvent], None]
