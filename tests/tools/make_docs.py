"""Write the pages that are made from the code: docs/job.md, docs/exit-codes.md, docs/events.md, and of the command line
docs/mover.1 and docs/completion/.

`python -m tests.tools.make_docs` writes them; a test compares them with what it would write.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mover import errors
from mover.job.model import (
    BackupSection,
    ExcludeSection,
    HooksSection,
    Job,
    LimitsSection,
    PoolSection,
    ReportSection,
    RestoreSection,
    RetentionSection,
    ScheduleSection,
    SelectorSection,
    StoreSection,
)
from mover.units import format_size
from tests.tools import cli_pages
from tests.tools.events_page import events_page

DOCS = Path(__file__).resolve().parents[2] / "docs"

_SECTIONS = {
    "[pool]": PoolSection,
    "[store]": StoreSection,
    "[backup]": BackupSection,
    "[[vms]]": SelectorSection,
    "[exclude]": ExcludeSection,
    "[hooks]": HooksSection,
    "[restore]": RestoreSection,
    "[limits]": LimitsSection,
    "[[schedules]]": ScheduleSection,
    "[retention]": RetentionSection,
    "[report]": ReportSection,
}

_JOB_HEAD = """# The job file

TOML. Sizes are `"64KiB"`, `"4MiB"`, `"2TiB"` or bytes; durations `"30s"`, `"10m"`, `"7d"` or seconds. Secrets never
stand in the file itself: each comes from exactly one of a file, an environment variable or a command. All that is
wrong is said at once, each with file, line, column, key, what was found and what is allowed, with exit code 2.

[job.example.toml](job.example.toml) shows every section. This page is made from the code by `tests/tools/make_docs.py`.

`name` at the top names the job: letters, digits, dots, dashes and underscores. Default: the file's name. One run of a
job is active at a time on a machine, and snapshots on the pool are tagged with it: renaming a job leaves its last
snapshots behind, and the next run reads in full.

With a passphrase in `[store]` the store is encrypted when the first run makes it, and one that is not encrypted is
refused. Whoever has lost the passphrase has lost the store: see [encryption.md](encryption.md).

A run in which every VM succeeded forgets the restore points of this job that `[retention]` does not keep, never the
newest of a VM, never the newest of which the store has lost nothing, and never the one that the next incremental starts
from. Their space comes back with `mover prune JOB`, which forgets by the same rules and may run at any time, also while
backups do; `mover prune STORE` forgets nothing.

The commands of `[hooks]` run on the mover's machine with `MOVER_VM_UUID`, `MOVER_VM_NAME`, `MOVER_JOB`, `MOVER_RUN` and
`MOVER_PHASE` (`pre-snapshot`, `post-snapshot`) in their environment, and without the variables that hold secrets of the
job; the end of their output is in the log. The second one runs in any case: if the first one or the snapshot failed,
and if the run is interrupted. One that does not end within `timeout` is killed with all that it has started; what one
has left running in the background when it ends, as a thaw that comes after a minute whatever happens, is left alone.
"""

_EXIT_HEAD = """# Exit codes

Results go to stdout, progress and messages to stderr. A code that is not here means failure. Repeating a command
unchanged helps only where the last column says so. This page is made from the code by `tests/tools/make_docs.py`.

| code | meaning | error | try again |
|---|---|---|---|
| 0 | done | | |
"""


def job_page() -> str:
    """docs/job.md."""
    parts = [_JOB_HEAD]
    for title, section in _SECTIONS.items():
        about = " ".join((section.__doc__ or "").split(": ", 1)[1].split())
        parts.append(f"## {title}\n\n{about[0].upper()}{about[1:]}\n\n| key | default | meaning |\n|---|---|---|")
        own = dataclasses.fields(section)
        if section is SelectorSection:
            own = tuple(field for field in own if field.name not in {f.name for f in dataclasses.fields(BackupSection)})
        parts.extend(_row(field) for field in own if field.metadata)
        parts.append("")
    return "\n".join(parts)


def _row(field: dataclasses.Field[Any]) -> str:
    default = "required" if field.metadata["required"] else _default(field)
    return f"| `{field.name.replace('_', '-')}` | {default} | {field.metadata['doc']} |"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value in (None, ()) or value is dataclasses.MISSING:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.name == "chunk_size":
        value = format_size(value).replace(" ", "")
    elif isinstance(value, float):
        value = f"{value:g}s"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def exit_page() -> str:
    """docs/exit-codes.md."""
    rows = [
        f"| {cls.exit_code} | {_meaning(cls)} | {cls.__name__} | {'yes' if cls.transient else 'no'} |"
        for cls in sorted(errors.all_errors(), key=lambda cls: cls.exit_code)
    ]
    rows.append("| 143 | Stopped by SIGTERM; what is left, if anything, is warned of. | InterruptedRunError | yes |")
    return _EXIT_HEAD + "\n".join(rows) + "\n"


def _meaning(cls: type[errors.MoverError]) -> str:
    if cls is errors.MoverError:
        return "Something unexpected: a bug."
    return (cls.__doc__ or "").splitlines()[0]


def pages() -> dict[Path, str]:
    """Every page that is made, with its text."""
    for field in dataclasses.fields(Job):
        assert field.metadata, field.name
    made = {DOCS / "job.md": job_page(), DOCS / "exit-codes.md": exit_page(), DOCS / "events.md": events_page()}
    if cli_pages.can_make():
        made[DOCS / "mover.1"] = cli_pages.man_page()
        made |= {DOCS / "completion" / file: cli_pages.completion(shell) for shell, file in cli_pages.SHELLS.items()}
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
