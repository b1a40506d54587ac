"""mover units"""

from __future__ import annotations

import argparse
import getpass
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mover.check.local import existing
from mover.check.store import folder_of
from mover.cli.opening import job_of
from mover.cli.runner import say, show
from mover.errors import JobError, TargetError
from mover.job import Job
from mover.lock import state_directory
from mover.store.local_copies import cache_directory
from mover.systemd import Unit, units


async def main(options: argparse.Namespace) -> int:
    """Write systemd units for a job's schedules, or print them."""
    job = job_of(options.job)
    check_calendars(job)
    command = [sys.executable, "-m", "mover"]
    user = None if options.user else getpass.getuser()
    made = units(job, Path(options.job).absolute(), command, _written_to(job), user)
    if options.to is None:
        for unit in made:
            show(f"# {unit.name}\n{unit.text}")
        return 0
    _write(made, Path(options.to))
    timers = " ".join(unit.name for unit in made if unit.name.endswith(".timer"))
    for unit in made:
        show(str(Path(options.to) / unit.name))
    manager = "systemctl --user" if options.user else "systemctl"
    say(f"to start: {manager} daemon-reload && {manager} enable --now {timers}")
    return 0


def check_calendars(job: Job) -> None:
    """Ask systemd itself, where it is there, whether it takes each calendar. Raises `JobError` with its words."""
    program = shutil.which("systemd-analyze")
    for schedule in job.schedules:
        if program is None or schedule.calendar is None:
            continue
        done = subprocess.run(
            [program, "calendar", "--", schedule.calendar], capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            raise JobError(
                f"the schedule {schedule.name}: systemd does not take the calendar {schedule.calendar!r}: "
                f"{done.stderr.strip()}",
                "man systemd.time describes it under CALENDAR EVENTS",
            )


def _written_to(job: Job) -> list[Path]:
    """The folders that a run writes to, or what is there of them: a confined service cannot make others."""
    state = state_directory()
    wanted = [state, Path(tempfile.gettempdir())]
    store = folder_of(job.store.url)
    if store is not None:
        wanted.append(store)
    else:
        wanted.append(Path("/var/tmp"))  # where large objects are gathered before they are sent
    if store is None or _encrypted(job):
        wanted.append(Path(cache_directory()))
    for file in (job.report.log, job.report.prometheus):
        if file is not None:
            wanted.append(Path(file.replace("{job}", job.name)).absolute().parent)
    return sorted({existing(folder) for folder in wanted})


def _encrypted(job: Job) -> bool:
    """Whether the job says that its store is encrypted: the index of such a one is mapped from copies, too."""
    return bool(job.store.passphrase_file or job.store.passphrase_env or job.store.passphrase_command)


def _write(made: list[Unit], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unit in made:
            (folder / unit.name).write_text(unit.text)
    except OSError as error:
        raise TargetError(f"cannot write {folder}: {error.strerror}") from error
