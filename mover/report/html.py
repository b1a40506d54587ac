"""A page about the restore points of a store: pictures over time, a table per VM. It needs no network and no script."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from mover import __version__
from mover.history import Sample, by_vm, samples
from mover.printable import printable
from mover.report.plots import draw, require_matplotlib
from mover.store import Point
from mover.units import format_duration, format_size
from mover.unusual import unusual

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --card: #ffffff; --line: #e3e3df; --ink: #1d2024; --soft: #5c636b; --faint: #9aa0a6;
  --changed: #b26a00; --read: #1f6fb2; --stored: #2a8c4a; --duration: #6d4bb3; --deduplication: #0f8a8a;
  --compression: #b23a6b; --unusual: #c9202b; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15171a; --card: #1c1f23; --line: #31363c; --ink: #e6e8ea; --soft: #a4abb3; --faint: #6f777f;
  --changed: #f0a63a; --read: #62b0f0; --stored: #63cf86; --duration: #b39bf0; --deduplication: #4fd0d0;
  --compression: #f080ac; --unusual: #ff6b70; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .soft { color: var(--soft); } a { color: inherit; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem;
  margin-top: 1.2rem; break-inside: avoid; }
svg { width: 100%; height: auto; font-family: system-ui, sans-serif; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); border-top: 0; }
th:first-child, td:first-child, .words { text-align: left; } td.words { white-space: normal; min-width: 16rem; }
.bad { color: var(--unusual); font-weight: 600; } code { font-size: .85em; }
details { margin-top: .6rem; } summary { cursor: pointer; color: var(--soft); }
"""


def page(points: Sequence[Point], where: str, now: float) -> str:
    """The page about `points` of the store at `where`, made at `now` (Unix time).

    Raises `UsageError` if matplotlib is not installed.
    """
    require_matplotlib()
    vms = by_vm(points)
    order = sorted(vms, key=lambda uuid: (vms[uuid][-1].record.vm_name, uuid))
    parts = [_Vm(vms[uuid]) for uuid in order]
    title = f"Backups in {escape(printable(where))}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            # Nothing may be fetched, even if a name of a VM found a way to ask for it.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="soft">{len(points)} restore points of {len(vms)} VMs. '
            f"Made {_moment(now)} by mover {__version__}; times are UTC.</p>",
            *_overview(parts),
            *(line for part in parts for line in part.section()),
            "</body></html>\n",
        ]
    )


class _Vm:
    """One VM's points, and what is unusual about each of them."""

    def __init__(self, points: Sequence[Point]) -> None:
        record = points[-1].record
        self.uuid = record.vm_uuid
        self.name = escape(printable(record.vm_name)) or "(no name)"
        self.samples = samples((point.id, point.record) for point in points)
        self.unusual = [unusual(self.samples[:at], sample) for at, sample in enumerate(self.samples)]
        self.anchor = "vm-" + hashlib.sha256(self.uuid.encode()).hexdigest()[:12]

    def section(self) -> Iterator[str]:
        """Heading, pictures, table."""
        newest = self.samples[-1]
        yield f'<section id="{self.anchor}"><h2>{self.name}</h2>'
        count = f"{len(self.samples)} restore point{'s' if len(self.samples) > 1 else ''}"
        yield (
            f'<p class="soft"><code>{escape(printable(self.uuid))}</code> · {format_size(newest.size)} · '
            f"{count}, the newest of {_moment(newest.time)}</p>"
        )
        for words in self.unusual[-1]:
            yield f'<p class="bad">The newest point is {escape(words)}.</p>'
        yield draw(self.samples, [bool(words) for words in self.unusual], self.anchor)
        yield "<details><summary>every point</summary>"
        yield from self._table()
        yield "</details></section>"

    def _table(self) -> Iterator[str]:
        heads = ["time", "point", "changed", "read", "stored", "duration", "dedupe", "compression"]
        yield '<div class="scroll"><table><tr>' + "".join(f"<th>{head}</th>" for head in heads)
        yield '<th class="words">why in full; what is unusual</th></tr>'
        for sample, words in zip(reversed(self.samples), reversed(self.unusual), strict=True):
            cells = [
                _moment(sample.time),
                f"<code>{escape(sample.point)}</code>",
                format_size(sample.changed),
                format_size(sample.read),
                format_size(sample.stored),
                format_duration(sample.seconds),
                _ratio(sample.dedupe),
                _ratio(sample.compression),
            ]
            reasons = "; ".join(escape(printable(reason)) for reason in sample.reasons)
            bad = "".join(f' <span class="bad">{escape(word)}</span>' for word in words)
            yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells)
            yield f'<td class="words">{_full(sample)}{reasons}{bad}</td></tr>'
        yield "</table></div>"


def _overview(vms: Sequence[_Vm]) -> Iterator[str]:
    if not vms:
        yield "<section><p>There is no restore point yet.</p></section>"
        return
    yield '<section><div class="scroll"><table><tr><th>VM</th><th>points</th><th>newest</th><th>size</th>'
    yield "<th>changed</th><th>read</th><th>stored</th><th>stored in all</th><th></th></tr>"
    for vm in vms:
        newest = vm.samples[-1]
        cells = [
            f'<a href="#{vm.anchor}">{vm.name}</a>',
            str(len(vm.samples)),
            _moment(newest.time),
            *map(format_size, (newest.size, newest.changed, newest.read, newest.stored)),
            format_size(sum(sample.stored for sample in vm.samples)),
            '<span class="bad">unusual</span>' if vm.unusual[-1] else "",
        ]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div></section>"


def _full(sample: Sample) -> str:
    if not sample.full_disks:
        return ""
    return f"{sample.full_disks} disk{'s' if sample.full_disks > 1 else ''} in full{'; ' if sample.reasons else ''}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} : 1"


def _moment(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}"
