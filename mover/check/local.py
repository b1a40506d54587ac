"""What can be said about a job on this machine alone: secrets, hooks, retention, reports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mover.check.finding import Finding, failed
from mover.errors import MoverError
from mover.job import Job, read_secret
from mover.job.model import RetentionSection


def check_local(job: Job) -> Iterator[Finding]:
    """Look at everything that needs neither the pool nor the store."""
    yield from _secrets(job)
    yield from _transport(job)
    yield from _hooks(job)
    yield from _retention(job)
    yield from _reports(job)


def _secrets(job: Job) -> Iterator[Finding]:
    pool, store = job.pool, job.store
    sources: list[tuple[str, str | None, str | None, Sequence[str] | None]] = [
        ("the pool's password", pool.password_file, pool.password_env, pool.password_command)
    ]
    if store.passphrase_file or store.passphrase_env or store.passphrase_command:
        sources.append(
            ("the store's passphrase", store.passphrase_file, store.passphrase_env, store.passphrase_command)
        )
    if store.secret_access_key_file or store.secret_access_key_env or store.secret_access_key_command:
        sources.append(
            (
                "the secret access key of the store",
                store.secret_access_key_file,
                store.secret_access_key_env,
                store.secret_access_key_command,
            )
        )
    for what, file, env, command in sources:
        try:
            read_secret(what, file=file, env=env, command=command)
        except MoverError as error:
            yield failed("secret", error)
        else:
            yield Finding(level="ok", check="secret", what=f"{what} can be read")


def _transport(job: Job) -> Iterator[Finding]:
    if urlsplit(job.pool.url).scheme == "http":
        yield Finding(
            level="warning",
            check="transport",
            what=f"{job.pool.url} is plain HTTP: password, session and disks cross the network in the clear, and "
            "nobody checks whom they go to",
            fix='url = "https://…" and fingerprint or ca-file in [pool]',
        )


def _hooks(job: Job) -> Iterator[Finding]:
    for phase, command in (("pre-snapshot", job.hooks.pre_snapshot), ("post-snapshot", job.hooks.post_snapshot)):
        if command is None:
            continue
        if shutil.which(command[0]) is None:
            there = Path(command[0]).is_file()
            yield Finding(
                level="error" if job.hooks.on_failure == "fail" else "warning",
                check="hook",
                what=f"the {phase} command {command[0]} {'is not executable' if there else 'does not exist'}",
                fix=f"chmod +x {command[0]}" if there else f"mend {phase} in [hooks]",
            )
        else:
            yield Finding(level="ok", check="hook", what=f"the {phase} command {command[0]} can be run")


def _retention(job: Job) -> Iterator[Finding]:
    policy = job.retention
    numbers = [getattr(policy, name) for name in RetentionSection.__dataclass_fields__]
    if not any(numbers):
        yield Finding(
            level="info", check="retention", what="no [retention]: every restore point stays, the store only grows"
        )
    elif sum(numbers) == 1:
        yield Finding(
            level="warning",
            check="retention",
            what="one restore point of each VM stays: what is noticed only after the next run cannot be undone",
            fix="keep-last = 3 or keep-daily = 7 in [retention]",
        )
    else:
        yield Finding(
            level="ok", check="retention", what=f"at most {sum(numbers)} restore points of each VM stay, and its base"
        )


def _reports(job: Job) -> Iterator[Finding]:
    for key, path in (("log", job.report.log), ("prometheus", job.report.prometheus)):
        if path is None:
            continue
        folder = Path(path.replace("{job}", job.name)).absolute().parent
        made = existing(folder) if key == "log" else folder
        if not made.is_dir() or not os.access(made, os.W_OK | os.X_OK):
            # A log that cannot be opened ends a run before it begins; the other is complained of at its end.
            yield Finding(
                level="error" if key == "log" else "warning",
                check="report",
                what=f"{key} of [report] cannot be written: {made} is not a folder that this user can write to",
                fix=f"mkdir -p {folder}, writable for the user that runs mover",
            )


def existing(folder: Path) -> Path:
    """What is there already of a path to a folder: a folder, if one can be made there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
