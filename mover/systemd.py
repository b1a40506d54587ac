"""A job's schedules as systemd units. Text in, text out; `mover units` writes them.

Options are those of systemd 252 (Debian 12) and later: man systemd.service, systemd.timer, systemd.exec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mover.errors import InterruptedRunError, JobError, all_errors
from mover.job import Job, ScheduleSection

# What trying again in a while does not change: all but another run of the job, a pool that does not answer, a store in
# use. Services of the type oneshot can name only these (RestartForceExitStatus= is not allowed there).
_FINAL = sorted(
    {error.exit_code for error in all_errors()} - {error.exit_code for error in all_errors() if error.transient}
    | {InterruptedRunError.exit_code, 143}
)

# Whatever a run does not need is taken away. Only a system's services can have all of it; a user's manager may not
# build mount namespaces.
_CONFINED = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER
"""
_CONFINED_USER = """\
NoNewPrivileges=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


@dataclass(frozen=True)
class Unit:
    """A unit file: its name and its text."""

    name: str
    text: str


def units(
    job: Job, job_file: Path, command: Sequence[str], writable: Sequence[Path], user: str | None = None
) -> list[Unit]:
    """A service and a timer for each schedule of `job` that has a calendar.

    `command` starts this program (absolute), `writable` are the folders that a run writes to. `user` runs it; None
    makes units for a user's own manager. Raises `JobError` if no schedule has a calendar.
    """
    timed = [schedule for schedule in job.schedules if schedule.calendar]
    if not timed:
        raise JobError(
            f"the job {job.name} has no schedule with a calendar",
            'add [[schedules]] with name = "nightly" and calendar = "*-*-* 01:30:00"',
        )
    made: list[Unit] = []
    for schedule in timed:
        name = f"mover-{job.name}-{schedule.name}"
        made.append(Unit(f"{name}.service", _service(job, schedule, job_file, command, writable, user)))
        made.append(Unit(f"{name}.timer", _timer(job, schedule)))
    return made


def _service(
    job: Job,
    schedule: ScheduleSection,
    job_file: Path,
    command: Sequence[str],
    writable: Sequence[Path],
    user: str | None,
) -> str:
    line = [*command, "run", str(job_file), "--schedule", schedule.name, "--progress", "plain"]
    lines = [
        "[Unit]",
        f"Description=mover: job {job.name}, schedule {schedule.name}",
        "Documentation=man:mover(1)",
    ]
    if user is not None:
        lines += ["Wants=network-online.target", "After=network-online.target"]
    lines += [
        # At most so many tries in so long: then the failure stands, and the timer's next time is the next try.
        "StartLimitIntervalSec=6h",
        "StartLimitBurst=12",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={' '.join(map(quoted, line))}",
    ]
    if user is not None:
        lines.append(f"User={user}")
    for variable in sorted(job.secret_variables):
        lines += [
            f"# This file holds the line {variable}=…; only its owner may read it.",
            f"EnvironmentFile={'/etc/mover' if user is not None else '%h/.config/mover'}/{job.name}.env",
        ]
    lines += [
        "# Any other may be gone in a while: another run of this job is active, or the pool does not answer.",
        "Restart=on-failure",
        f"RestartPreventExitStatus={' '.join(map(str, _FINAL))}",
        "RestartSec=15min",
        "# The first signal lets a run clean up after itself, which takes a minute at most.",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        "TimeoutStartSec=infinity",
        "TimeoutStopSec=2min",
        "Nice=10",
        "IOSchedulingPriority=7",
        "UMask=0077",
    ]
    return "\n".join(lines) + "\n" + _confinement(job, writable, system=user is not None)


def _confinement(job: Job, writable: Sequence[Path], *, system: bool) -> str:
    commands = (
        job.hooks.pre_snapshot,
        job.hooks.post_snapshot,
        job.pool.password_command,
        job.store.passphrase_command,
        job.store.secret_access_key_command,
    )
    if any(commands):
        return "# Not confined: nobody but you knows what the job's own commands need.\n"
    if not system:
        return _CONFINED_USER
    paths = "".join(f"ReadWritePaths={quoted(str(path))}\n" for path in writable)
    return f"# The only places that a run writes to.\n{paths}{_CONFINED}"


def _timer(job: Job, schedule: ScheduleSection) -> str:
    calendar = str(schedule.calendar).replace("%", "%%")
    return f"""\
[Unit]
Description=mover: when the schedule {schedule.name} of the job {job.name} runs

[Timer]
OnCalendar={calendar}
# A time that was missed because the machine was off is made up for.
Persistent=yes
# Pools with many jobs are not asked by all of them in the same second.
RandomizedDelaySec=5min
AccuracySec=1min

[Install]
WantedBy=timers.target
"""


def quoted(word: str) -> str:
    """One word of a command line of systemd: specifiers, variables, quotes and spaces lose their meaning."""
    plain = word.replace("%", "%%").replace("$", "$$")
    if plain and not set(plain) & set(" \t\n\"'\\;"):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
