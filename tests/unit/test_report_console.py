"""What a terminal shows: bars, sentences, the table at the end, and nothing that a name on the pool can break."""

import io

import pytest
from rich.console import Console

from mover.events import AnyEvent, DiskFinished, DiskPlanned, DiskProgress, Note, RunFinished, RunStarted, VmFinished
from mover.events import VmStarted as Started
from mover.printable import printable, printable_lines
from mover.report.bars import Bars
from mover.report.plain import PlainLines
from mover.report.summary import Summary
from mover.report.table import summary_table
from mover.report.view import open_view

MiB = 1 << 20
NASTY = "web [/old] \x1b[31mred\x1b[0m\r\nerror: forged \N{RIGHT-TO-LEFT OVERRIDE}"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def disk(vm: str, position: str, mode: str, changed: int, read: int, stored: int) -> DiskFinished:
    return DiskFinished(
        vm=vm,
        disk=position,
        name="root",
        mode=mode,  # type: ignore[arg-type]
        size=20 << 30,
        changed=changed * MiB,
        read=read * MiB,
        zero=0,
        known=0,
        new=changed * MiB,
        stored=stored * MiB,
        seconds=2.0,
    )


def planned(vm: str, position: str, reason: str | None) -> DiskPlanned:
    return DiskPlanned(vm=vm, disk=position, name="root", size=MiB, mode="full", to_read=MiB, reason=reason)


STORY: list[AnyEvent] = [
    RunStarted(run="r1", job="nightly", schedule=None, action="backup", vms=["web-1", "db"]),
    Started(vm="u1", name="web-1", strategy="cbt"),
    planned("u1", "1", "CBT was off"),
    disk("u1", "0", "incremental", 100, 120, 40),
    disk("u1", "1", "full", 1, 2000, 1),
    VmFinished(vm="u1", name="web-1", outcome="done", point="abcd", seconds=10.0),
    Started(vm="u2", name="db", strategy="cbt"),
    VmFinished(vm="u2", name="db", outcome="failed", error="db: SR_BACKEND_FAILURE_44", hint="make room", seconds=1.0),
    Note(level="warning", message="careful"),
    RunFinished(run="r1", outcome="partial", exit_code=3, seconds=11.0, read=2120 * MiB, stored=41 * MiB),
]


def summed(events: list[AnyEvent]) -> Summary:
    summary = Summary()
    for event in events:
        summary(event, 5.0)
    return summary


def rendered(events: list[AnyEvent], width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(summary_table(summed(events).value))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_table_at_the_end():
    assert rendered(STORY) == [
        "VM     outcome  disks      changed      read  stored  time      rate",
        "db     failed   0              0 B       0 B     0 B  0:01    0 MB/s",
        "web-1  done     2, 1 full  101 MiB  2.07 GiB  41 MiB  0:10  222 MB/s",
        "all    partial             101 MiB  2.07 GiB  41 MiB  0:11  202 MB/s",
    ]


def test_the_table_fits_the_width_by_cutting_names():
    long = [event for event in STORY if not isinstance(event, VmFinished)]
    long += [VmFinished(vm="u1", name="n" * 200, outcome="done", seconds=10.0), STORY[-1]]
    lines = rendered(long, 80)
    assert max(map(len, lines)) <= 80
    assert any("2.07 GiB" in line and "222 MB/s" in line and "n…" in line for line in lines)


def test_a_name_is_not_read_as_markup():
    assert rendered([Started(vm="u", name="[red]x[/] [/old]", strategy="cbt")])[1].startswith("[red]x[/] [/old]")


def test_the_sum_of_a_run_has_reasons_and_hints():
    value = summed(STORY).value
    assert value.vms["u1"].reasons == {"1": "CBT was off"}
    assert (value.vms["u1"].disks, value.vms["u1"].full_disks) == (2, 1)
    assert value.vms["u2"].hint == "make room"
    assert (value.outcome, value.exit_code, value.warnings, value.finished) == ("partial", 3, ["careful"], 5.0)


def shown(monkeypatch: pytest.MonkeyPatch, events: list[AnyEvent], **environment: str) -> str:
    for name in ("NO_COLOR", "TERM", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "100", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    with open_view("auto", stream) as emit:
        for event in events:
            emit(event)
    return stream.getvalue()


def test_bars_on_a_terminal_end_with_the_table(monkeypatch: pytest.MonkeyPatch):
    text = shown(monkeypatch, STORY)
    assert "web-1/1 (root): full, 1 MiB of 1 MiB: CBT was off" in text
    assert "2, 1 full" in text
    assert text.index("2, 1 full") < text.index("partial: read 2.07 GiB")


def test_no_color_means_none(monkeypatch: pytest.MonkeyPatch):
    assert "\x1b[31m" in shown(monkeypatch, STORY)
    assert "\x1b[31m" not in shown(monkeypatch, STORY, NO_COLOR="1")


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, term: str):
    assert "\x1b" not in shown(monkeypatch, STORY, TERM=term)


def test_a_bar_shows_vm_disk_and_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Bars(stream) as emit:
        emit(Started(vm="u", name="web-1", strategy="cbt"))
        emit(planned("u", "0", None))
        emit(DiskProgress(vm="u", disk="0", done=MiB // 2, read=0, zero=0, known=0, new=0, stored=0))
        emit(DiskProgress(vm="u", disk="unplanned", done=1, read=0, zero=0, known=0, new=0, stored=0))
    assert "web-1/0 full" in stream.getvalue()
    assert "50%" in stream.getvalue()


def test_names_from_the_pool_break_no_view(monkeypatch: pytest.MonkeyPatch):
    events: list[AnyEvent] = [
        RunStarted(run="r", job="j", schedule=None, action="backup", vms=[NASTY]),
        Started(vm="u", name=NASTY, strategy="cbt"),
        planned("u", "0", NASTY),
        DiskProgress(vm="u", disk="0", done=1, read=1, zero=0, known=0, new=0, stored=0),
        VmFinished(vm="u", name=NASTY, outcome="failed", error=NASTY, hint=NASTY),
        RunFinished(run="r", outcome="failed", exit_code=23, seconds=1.0, read=0, stored=0),
    ]
    bars = shown(monkeypatch, events, NO_COLOR="1")
    plain = io.StringIO()
    lines = PlainLines(plain)
    for event in events:
        lines(event)
    for text in (bars, plain.getvalue()):
        assert "[/old]" in text
        assert "\x1b[31mred" not in text
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert not any(line.startswith("error: forged") for line in plain.getvalue().splitlines())


def test_printable():
    assert printable("wéb-1 日本") == "wéb-1 日本"
    assert printable("a\tb\x1b\u202e\ud800") == r"a\tb\x1b\u202e\ud800"
    assert printable_lines("one\ntwo\x07") == "one\n  two\\x07"


def test_a_second_run_begins_from_nothing():
    again = summed([*STORY, RunStarted(run="r2", job="other", schedule=None, action="backup", vms=[])]).value
    assert (again.run, again.job, again.vms, again.warnings, again.read, again.finished) == (
        "r2",
        "other",
        {},
        [],
        0,
        0.0,
    )
