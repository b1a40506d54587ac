"""docs/events.md, made from the event classes and what is said here about their fields."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import msgspec

from mover import events
from mover.check import Finding
from mover.explain import DiskOutlook, KeptSnapshot, VmOutlook
from mover.report.jsonl import VERSION
from mover.report.summary import RunSummary, VmSummary

_HEAD = f"""# Events

`--progress json` writes what a run says to stderr, one JSON object a line; so does `log` of a job's `[report]`. Every
line has these fields, and those of its type:

| field | JSON | meaning |
|---|---|---|
| `v` | number | version of this description, {VERSION}; raised when a field changes its meaning or goes |
| `time` | number | Unix time in seconds, UTC |
| `type` | string | which of the events below |

Fields and types may be added without a new version: ignore what you do not know. All fields are always there; sizes
are bytes, durations seconds. A disk is named by the UUID of its VM and its position (`userdevice`); names are for
people and not unique. On stderr, a line that does not begin with `{{` is a message for people.

This page is made from the code by `tests/tools/make_docs.py`.
"""

_SUMMARY = """# The summary of a run

`mover run --json` prints it on stdout, also if the run failed; the webhook of a job's `[report]` gets it.
"""

_CHECKS = """# What check and explain say

`mover check --json` prints an object of `exit_code` and `findings`, an array of findings; `mover explain --json` one of
`vms`, an array of VMs' outlooks.
"""

_FIELDS = {
    "run": "the run's id",
    "job": "the job's name",
    "schedule": "which of the job's schedules, if one was named",
    "action": "what is done",
    "vms": "names of the VMs",
    "vm": "the VM's UUID",
    "name": "the disk's name",
    "disk": "the disk's position",
    "strategy": "how the VM is backed up",
    "outcome": "how it ended",
    "point": "id of the new restore point",
    "seconds": "how long it took",
    "error": "what went wrong",
    "hint": "what to do about it",
    "size": "the disk's size",
    "mode": "how the disk is read, or that it is restored",
    "to_read": "bytes to read (of a restore: to write)",
    "reason": "why the disk is read in full, where that was not asked for",
    "done": "of the bytes to read, how many are dealt with",
    "read": "bytes read from the pool (of a restore: from the store)",
    "zero": "bytes of those that are zero",
    "known": "bytes that the store had already",
    "new": "bytes that the store had not",
    "stored": "bytes that the store grew by, compressed",
    "changed": "bytes of chunks that differ from the restore point before",
    "level": "how much it matters",
    "message": "the words",
    "what": "what is tried again",
    "server": "the server concerned",
    "wait": "seconds until the next try",
    "total": "bytes to check",
    "object": "name of the damaged object in the store",
    "points": "ids of the restore points that need it",
    "exit_code": "what the program ends with (130 for any interruption)",
    "uuid": "the VM's UUID",
    "disks": "how many disks were read",
    "full_disks": "how many of them in full",
    "reasons": "by position of the disk, why it was read in full, where that was not asked for",
    "finished": "when it ended, Unix time",
    "warnings": "what an operator should know",
    "check": "what was looked at",
    "fix": "what to do about it, a command where there is one",
    "last_point": "id of the VM's newest restore point",
    "refused": "why the run would fail",
    "memory": "whether what the VM has in memory would be taken along",
    "goes_on_with": "UUID of the snapshot of a killed run that the next one goes on with, if there is one",
    "excluded": "disks that the job leaves out",
    "snapshots": "the snapshots of the VM on the pool, oldest first",
    "position": "the disk's position",
    "vdi": "the VDI's UUID",
    "base_point": "id of the restore point that the incremental would start from",
    "base_snapshot": "UUID of its snapshot on the pool",
    "over": "how it would be read",
    "estimate": "how `to_read` is known",
    "kind": "a snapshot of the VM, or of one disk without its VM",
    "taken": "when, in the pool's time",
    "data": "whether it has data, or only the CBT log",
    "owner": "whose it is",
    "fate": "what the next run does with it",
}
_SPECIAL = {
    ("vm.started", "name"): "the VM's name",
    ("vm.finished", "name"): "the VM's name",
    ("note", "vm"): "UUID of the VM concerned, if any",
    ("note", "disk"): "position of the disk concerned, if any",
    ("verify.progress", "done"): "bytes checked",
    ("verify.damage", "reason"): "what is wrong with it",
    ("verify.damage", "disks"): "the disks that need it: of each the id of its restore point, a space, its position",
    ("retry", "error"): "what went wrong",
    ("Of a run", "vms"): "by UUID, what became of each VM",
    ("Of a VM", "name"): "the VM's name",
    ("A finding", "level"): "error: stops the backup of the VM, or of all; warning: slower, riskier or larger",
    ("A finding", "what"): "what was seen",
    ("A finding", "vm"): "the VM's name; none if it concerns the job",
    ("A VM's outlook", "name"): "the VM's name",
    ("A VM's outlook", "mode"): "the mode that was asked for",
    ("A VM's outlook", "disks"): "the outlook of each disk",
    ("A disk's outlook", "to_read"): "bytes, as far as that is known",
    ("A disk's outlook", "reason"): "why it would be read in full",
    ("A disk's outlook", "stored"): "bytes from its beginning that a run that was killed has left in the store",
    ("A snapshot", "uuid"): "UUID of the snapshot: a VM's or a VDI's",
    ("A snapshot", "name"): "its name",
}
_JSON = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def events_page() -> str:
    """The page."""
    sections = [_section(str(cls.__struct_config__.tag), cls) for cls in typing.get_args(events.AnyEvent)]
    summary = [_SUMMARY, _section("Of a run", RunSummary), _section("Of a VM", VmSummary)]
    told = {
        "A finding": Finding,
        "A VM's outlook": VmOutlook,
        "A disk's outlook": DiskOutlook,
        "A snapshot": KeptSnapshot,
    }
    checks = [_CHECKS, *(_section(title, cls) for title, cls in told.items())]
    return "\n".join([_HEAD, *sections, *summary, *checks])


def _section(title: str, cls: type[msgspec.Struct]) -> str:
    about = " ".join((cls.__doc__ or "").split())
    rows = [
        f"| `{field.name}` | {json_type(field.type)} | {_SPECIAL.get((title, field.name)) or _FIELDS[field.name]} |"
        for field in msgspec.structs.fields(cls)
    ]
    return "\n".join([f"## {title}\n\n{about}\n\n| field | JSON | meaning |\n|---|---|---|", *rows, ""])


def json_type(type: Any) -> str:
    """How a Python type looks in JSON, for people."""
    origin = typing.get_origin(type)
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in typing.get_args(type))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(json_type(part) for part in typing.get_args(type))
    if origin is dict:
        return f"object of {json_type(typing.get_args(type)[1])}s"
    if type in (VmSummary, DiskOutlook, KeptSnapshot):
        return "object"
    if origin is list:
        return f"array of {json_type(typing.get_args(type)[0])}s"
    return _JSON[type]
