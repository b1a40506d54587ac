"""Typed records from what XML-RPC gives."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from protocol.errors import FormatError
from protocol.xapi import NULL_REF, HostRecord, VDIRecord, VMRecord, is_null, parse_record, parse_records, parse_time
from protocol.xapi.records import parse_task

VDI: dict[str, Any] = {
    "uuid": "u",
    "SR": "OpaqueRef:sr",
    "virtual_size": "12884901888",
    "physical_utilisation": "-1",
    "cbt_enabled": True,
    "sm_config": {"vhd-parent": "x"},
    "tags": ["a"],
    "not known to us": {"a": ["b"]},
}


def test_a_disk() -> None:
    disk = parse_record(VDIRecord, "OpaqueRef:1", VDI)
    assert disk.ref == "OpaqueRef:1"
    assert disk.virtual_size == 12 << 30
    assert disk.physical_utilisation == -1
    assert disk.cbt_enabled is True
    assert disk.tags == ("a",)
    assert disk.sm_config == {"vhd-parent": "x"}
    assert disk.snapshot_of == NULL_REF
    assert disk.raw == VDI


def test_fields_of_newer_servers_have_defaults() -> None:
    vm = parse_record(VMRecord, "OpaqueRef:1", {"uuid": "u", "name_label": "n"})
    assert vm.blocked_operations == {}
    assert vm.VBDs == ()


@pytest.mark.parametrize(
    "change",
    [{"virtual_size": "-1"}, {"virtual_size": "many"}, {"virtual_size": str(1 << 70)}, {"tags": "a"}, {"SR": []}],
)
def test_values_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="VDIRecord"):
        parse_record(VDIRecord, "OpaqueRef:1", VDI | change)


@pytest.mark.parametrize("records", ["", [], {"OpaqueRef:1": "x"}, {"OpaqueRef:1": {}}])
def test_records_that_are_none(records: Any) -> None:
    with pytest.raises(FormatError):
        parse_records(HostRecord, records)


def test_tasks() -> None:
    task = parse_task({"status": "failure", "error_info": ["A", "b"], "progress": 1.0, "result": "", "uuid": "x"})
    assert task.ended
    assert task.error_info == ("A", "b")
    assert not parse_task({"status": "pending"}).ended
    with pytest.raises(FormatError):
        parse_task("x")


def test_times_and_nothing() -> None:
    assert parse_time("20260821T02:00:23Z") == datetime(2026, 8, 21, 2, 0, 23, tzinfo=UTC)
    with pytest.raises(FormatError):
        parse_time("yesterday")
    assert is_null("")
    assert is_null("OpaqueRef:NULL")
    assert not is_null("OpaqueRef:1")
