"""Why a disk is read in full is said wherever a run is shown: a full that nobody asked for must not go unnoticed."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mover.events import AnyEvent, DiskFinished, DiskPlanned, RunFinished, RunStarted, VmFinished, VmStarted
from mover.report.bars import Bars
from mover.report.html import page
from mover.report.jsonl import JsonLines
from mover.report.plain import PlainLines
from mover.report.prometheus import render
from mover.report.summary import RunSummary, Summary
from mover.store import Point, PointDisk, PointRecord, Store
from mover.store.names import PointName
from tests import fork_server

REASON = "the base snapshot 1234 is gone from the pool"
STORY: list[AnyEvent] = [
    RunStarted(run="r", job="nightly", schedule=None, action="backup", vms=["web"]),
    VmStarted(vm="u", name="web", strategy="cbt"),
    DiskPlanned(vm="u", disk="0", name="root", size=10, mode="full", to_read=10, reason=REASON),
    DiskFinished(
        vm="u",
        disk="0",
        name="root",
        mode="full",
        size=10,
        changed=1,
        read=10,
        zero=0,
        known=0,
        new=1,
        stored=1,
        seconds=1,
    ),
    VmFinished(vm="u", name="web", outcome="done", point="p", seconds=1.0),
    RunFinished(run="r", outcome="done", exit_code=0, seconds=1.0, read=10, stored=1),
]


def plain() -> str:
    stream = io.StringIO()
    view = PlainLines(stream)
    for event in STORY:
        view(event)
    return stream.getvalue()


def bars() -> str:
    stream = io.StringIO()
    with Bars(stream) as view:
        for event in STORY:
            view(event)
    return stream.getvalue()


def json_lines() -> str:
    stream = io.StringIO()
    view = JsonLines(stream)
    for event in STORY:
        view(event)
    return "\n".join(json.loads(line).get("reason") or "" for line in stream.getvalue().splitlines())


def folded() -> RunSummary:
    summary = Summary()
    for event in STORY:
        summary(event, 1.0)
    return summary.value


def webhook_and_json() -> str:
    return json.loads(msgspec.json.encode(folded()))["vms"]["u"]["reasons"]["0"]  # type: ignore[no-any-return]


def prometheus() -> str:
    return render(folded())


def html() -> str:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `report`)")
    disk = PointDisk(position="0", name="root", vdi_uuid="v", size=10, root=bytes(32), mode="full", reason=REASON)
    record = PointRecord(vm_uuid="u", vm_name="web", created=1.0, disks=[disk])
    return page([Point("0" * 16, PointName("0" * 32, 0), record)], "/s", 1.0)


@pytest.mark.parametrize(
    "view", [plain, bars, json_lines, webhook_and_json, prometheus, html], ids=lambda v: v.__name__
)
def test_the_reason_is_there(view: Callable[[], str]):
    assert REASON in view()


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["words", "JSON"])
def test_the_restore_point_says_it_later(tmp_path: Path, options: list[str]):
    disk = PointDisk(position="0", name="root", vdi_uuid="v", size=10, root=bytes(32), mode="full", reason=REASON)
    with Store.create(tmp_path / "store").writer() as writer:
        writer.commit(PointRecord(vm_uuid="u", vm_name="web", created=1.0, disks=[disk]))
    command = [sys.executable, "-m", "mover", "show", str(tmp_path / "store"), "web", *options]
    assert REASON in fork_server.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
