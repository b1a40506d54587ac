"""Log, monitoring and webhook of a run, and the sentences people read."""

import asyncio
import errno
import io
import json
from pathlib import Path

import pytest
from aiohttp import web

from mover.errors import BusyError, FencedError, MoverError, ReportError, UnreachableError
from mover.events import (
    AnyEvent,
    DiskFinished,
    DiskPlanned,
    Note,
    RunFinished,
    RunStarted,
    VmFinished,
    VmStarted,
)
from mover.job import ReportSection
from mover.report.jsonl import JsonLines
from mover.report.outputs import reporting
from mover.report.plain import PlainLines
from mover.report.view import surviving

MiB = 1 << 20
STORY: list[AnyEvent] = [
    RunStarted(run="r1", job="nightly", schedule=None, action="backup", vms=['web "1"', "db"]),
    VmStarted(vm="u1", name='web "1"', strategy="cbt"),
    DiskPlanned(vm="u1", disk="0", name="root", size=100 * MiB, mode="full", to_read=50 * MiB, reason="CBT was off"),
    DiskFinished(
        vm="u1",
        disk="0",
        name="root",
        mode="full",
        size=100 * MiB,
        changed=3 * MiB,
        read=50 * MiB,
        zero=MiB,
        known=46 * MiB,
        new=3 * MiB,
        stored=2 * MiB,
        seconds=2.0,
    ),
    VmFinished(vm="u1", name='web "1"', outcome="done", point="abcd", seconds=3.0),
    Note(level="warning", vm="u2", message="no quiesced snapshot"),
    VmFinished(vm="u2", name="db", outcome="failed", error="db: SR_BACKEND_FAILURE_44", hint="make room"),
    RunFinished(run="r1", outcome="partial", exit_code=3, seconds=4.0, read=50 * MiB, stored=2 * MiB),
]


def ignore(event: AnyEvent) -> None:
    del event


def test_plain_lines_say_why_a_disk_was_read_in_full():
    stream = io.StringIO()
    lines = PlainLines(stream)
    for event in STORY:
        lines(event)
    assert stream.getvalue().splitlines() == [
        'backup r1: job nightly, web "1", db',
        'web "1"/0 (root): full, 50 MiB of 100 MiB: CBT was off',
        'web "1"/0 (root): changed 3 MiB, read 50 MiB in 0:02, 26 MB/s, stored 2 MiB',
        'web "1": point abcd in 0:03',
        "warning: u2: no quiesced snapshot",
        "db: failed: db: SR_BACKEND_FAILURE_44 (hint: make room)",
        "partial: read 50 MiB, stored 2 MiB in 0:04",
    ]


def test_json_lines_carry_version_time_and_type():
    stream = io.StringIO()
    lines = JsonLines(stream, clock=lambda: 12.5)
    for event in STORY:
        lines(event)
    decoded = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["v"], line["time"], line["type"]) for line in decoded] == [
        (1, 12.5, kind)
        for kind in (
            "run.started",
            "vm.started",
            "disk.planned",
            "disk.finished",
            "vm.finished",
            "note",
            "vm.finished",
            "run.finished",
        )
    ]
    assert decoded[3]["changed"] == 3 * MiB


async def test_log_and_metrics_of_a_run(tmp_path: Path):
    section = ReportSection(prometheus=str(tmp_path / "m.prom"), log=str(tmp_path / "logs" / "{job}.jsonl"))
    for _ in range(2):
        async with reporting(section, "nightly", ignore) as emit:
            for event in STORY:
                emit(event)
    log = (tmp_path / "logs" / "nightly.jsonl").read_text().splitlines()
    assert len(log) == 2 * len(STORY)
    metrics = (tmp_path / "m.prom").read_text()
    assert 'mover_run_exit_code{job="nightly"} 3\n' in metrics
    assert 'mover_vm_success{job="nightly",vm="u1",name="web \\"1\\""} 1\n' in metrics
    assert 'mover_vm_success{job="nightly",vm="u2",name="db"} 0\n' in metrics
    assert f'mover_vm_read_bytes{{job="nightly",vm="u1",name="web \\"1\\""}} {50 * MiB}\n' in metrics
    assert [path.name for path in tmp_path.iterdir()] in (["m.prom", "logs"], ["logs", "m.prom"])


async def test_a_log_that_cannot_be_written_is_said_before_anything_is_done(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError):
        async with reporting(ReportSection(log=str(tmp_path / "file" / "x")), "nightly", ignore):
            pytest.fail("it began")


@pytest.mark.parametrize("status", [200, 500])
async def test_the_webhook_gets_the_summary_and_its_failure_is_a_warning(status: int):
    got: list[dict[str, object]] = []

    async def receive(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    seen: list[AnyEvent] = []
    try:
        async with reporting(ReportSection(webhook=url), "nightly", seen.append) as emit:
            for event in STORY:
                emit(event)
    finally:
        await runner.cleanup()
    assert got[0]["exit_code"] == 3
    assert got[0]["vms"]["u2"]["error"] == "db: SR_BACKEND_FAILURE_44"
    assert len(seen) == len(STORY) + (status == 500)


async def test_a_run_that_fails_before_it_begins_is_told_everywhere(tmp_path: Path):
    section = ReportSection(prometheus=str(tmp_path / "m.prom"), log=str(tmp_path / "{job}.jsonl"))
    seen: list[AnyEvent] = []
    with pytest.raises(UnreachableError):
        async with reporting(section, "nightly", seen.append):
            raise UnreachableError("no answer from https://x", "is it up?")
    assert seen == [
        RunFinished(
            run="",
            outcome="failed",
            exit_code=20,
            seconds=seen[0].seconds,  # type: ignore[union-attr]
            read=0,
            stored=0,
            error="no answer from https://x",
            hint="is it up?",
        )
    ]
    assert 'mover_run_exit_code{job="nightly"} 20\n' in (tmp_path / "m.prom").read_text()
    (line,) = (tmp_path / "nightly.jsonl").read_text().splitlines()
    assert json.loads(line)["type"] == "run.finished"


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (BusyError("another run of the job nightly is active"), True),
        (FencedError("a prune has shut this run out"), False),
    ],
    ids=["another run is active", "shut out"],
)
async def test_a_run_that_meets_another_one_leaves_the_figures_of_the_last_one(
    tmp_path: Path, error: MoverError, stays: bool
):
    """Else a run that hangs would look as if it ended again and again. Both codes are 75, but one was a run."""
    section = ReportSection(prometheus=str(tmp_path / "m.prom"), log=str(tmp_path / "{job}.jsonl"))
    async with reporting(section, "nightly", ignore) as emit:
        for event in STORY:
            emit(event)
    before = (tmp_path / "m.prom").read_text()
    with pytest.raises(type(error)):
        async with reporting(section, "nightly", ignore):
            raise error
    assert ((tmp_path / "m.prom").read_text() == before) == stays
    assert json.loads((tmp_path / "nightly.jsonl").read_text().splitlines()[-1])["exit_code"] == 75


@pytest.mark.parametrize(
    ("error", "outcome", "code", "words"),
    [
        (asyncio.CancelledError(), "interrupted", 130, "interrupted"),
        (KeyError("x"), "failed", 1, "unexpected KeyError"),
    ],
)
async def test_an_end_that_nobody_planned(error: BaseException, outcome: str, code: int, words: str):
    seen: list[AnyEvent] = []
    with pytest.raises(type(error)):
        async with reporting(ReportSection(), "nightly", seen.append) as emit:
            for event in STORY[:4]:
                emit(event)
            raise error
    end = seen[-1]
    assert isinstance(end, RunFinished)
    assert (end.run, end.outcome, end.exit_code, end.read) == ("r1", outcome, code, 50 * MiB)
    assert words in str(end.error)


def test_a_view_that_cannot_write_is_let_go_once():
    asked: list[AnyEvent] = []
    problems: list[OSError] = []

    def full(event: AnyEvent) -> None:
        asked.append(event)
        raise OSError(errno.ENOSPC, "No space left on device")

    show = surviving(full, problems.append)
    for event in STORY:
        show(event)
    assert len(asked) == len(problems) == 1


async def test_a_full_log_is_a_warning_and_the_run_goes_on():
    seen: list[AnyEvent] = []
    async with reporting(ReportSection(log="/dev/full"), "nightly", seen.append) as emit:
        for event in STORY:
            emit(event)
    warnings = [event for event in seen if isinstance(event, Note) and "ends here" in event.message]
    assert len(warnings) == 1
    assert [event for event in seen if event not in warnings] == STORY
