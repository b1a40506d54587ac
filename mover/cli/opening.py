"""Arguments that name a job or a store."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mover.errors import UsageError
from mover.job import Job, load_job, read_secret
from mover.storage import open_store, open_url
from mover.store import Store
from protocol.secret import Secret


def job_of(argument: str) -> Job:
    """The job file named on the command line."""
    return load_job(Path(argument))


def is_job(argument: str) -> bool:
    """Whether `STORE|JOB` is a job: a file, or a name that ends in .toml; all else is a store's path or URL."""
    return argument.endswith(".toml") or Path(argument).is_file()


def store_of(argument: str, options: argparse.Namespace) -> Store:
    """The store that `STORE|JOB` means, opened with the passphrase of the options if there is one."""
    return store_at(argument, passphrase_of(options))


def store_at(argument: str, passphrase: Secret | None) -> Store:
    """The store that `STORE|JOB` means. Without a passphrase the job's, or that of the environment, opens it."""
    if is_job(argument):
        return open_store(job_of(argument).store, passphrase)
    return open_url(argument, passphrase)


def passphrase_of(options: argparse.Namespace, prefix: str = "") -> Secret | None:
    """What --passphrase-file, -env or -command give, or their namesakes with a prefix. Raises `SecretError`."""
    file, env, command = (getattr(options, f"{prefix}passphrase_{kind}") for kind in ("file", "env", "command"))
    if file is env is command is None:
        return None
    try:
        words = None if command is None else shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command for the passphrase: {error}") from error
    if words == []:
        raise UsageError("the command for the passphrase is empty")
    return read_secret("the store's passphrase", file=file, env=env, command=words)
