"""Faults on request: armed in order, used up one by one, the same in Python and in JSON."""

import asyncio
import json

import pytest

from mover.simulator.faults import (
    CallFault,
    ClearFault,
    FaultFormatError,
    Faults,
    HostFault,
    HttpFault,
    NbdFault,
    SrFault,
)


def test_a_fault_is_met_as_often_as_it_was_armed():
    faults = Faults()
    faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "full", ""), times=2), CallFault("*", "OTHER"))
    assert faults.take_call("VM.snapshot") is not None
    other = faults.take_call("VM.destroy")
    assert other is not None
    assert other.code == "OTHER"
    assert faults.take_call("VM.destroy") is None
    last = faults.take_call("VM.snapshot")
    assert last is not None
    assert last.params == ("", "full", "")
    assert faults.take_call("VM.snapshot") is None


def test_kinds_and_hosts_are_kept_apart():
    faults = Faults()
    faults.arm(NbdFault("drop", host=1), HttpFault("task", "import_raw_vdi"))
    assert faults.take_nbd(0) is None
    assert faults.take_http("export_raw_vdi") is None
    assert faults.take_call("import_raw_vdi") is None
    assert faults.take_nbd(1) == NbdFault("drop", host=1)
    assert faults.take_http("import_raw_vdi") == HttpFault("task", "import_raw_vdi")


def test_json_says_the_same():
    faults = Faults()
    document = [
        {"type": "sr_full", "on": True},
        {"type": "host_down", "host": 1, "on": True},
        {"type": "http", "kind": "error", "handler": "*", "after": 4096, "code": "X", "params": ["a"], "times": 1},
        {"type": "nbd", "kind": "stall", "after": 7, "host": None, "errno": 5, "times": 3},
    ]
    faults.arm_json(json.dumps(document))
    assert faults.sr_full
    assert faults.hosts_down == {1}
    assert json.loads(faults.armed_json()) == document
    assert faults.take_http("export_raw_vdi") == HttpFault("error", after=4096, code="X", params=("a",))
    faults.arm_json('[{"type": "host_down", "host": 1, "on": false}, {"type": "sr_full", "on": false}]')
    assert not faults.sr_full
    assert not faults.hosts_down


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[1]",
        '[{"type": "nbd"}]',
        '[{"type": "nbd", "kind": "explode"}]',
        '[{"type": "sr_full", "of": 1}]',
        "[",
    ],
)
def test_what_is_no_fault_is_refused_and_nothing_is_armed(document: str):
    faults = Faults()
    with pytest.raises(FaultFormatError):
        faults.arm_json(document)
    with pytest.raises(FaultFormatError):
        faults.arm_json('[{"type": "sr_full"}, {"type": "no such"}]')
    assert faults.armed_json() == b"[]"


def test_clearing_forgets_everything():
    faults = Faults()
    faults.arm(SrFault(), HostFault(0), CallFault("*", "X"), ClearFault())
    assert faults.armed_json() == b"[]"
    assert not faults.sr_full
    assert not faults.hosts_down


async def test_release_lets_go_what_stalls_now_and_not_later():
    faults = Faults()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        stalled = group.create_task(faults.stall())
        await asyncio.sleep(0)
        assert not stalled.done()
        faults.release()
        await stalled
        later = group.create_task(faults.stall())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not later.done()
        later.cancel()
