"""Arguments that name a job or a store."""

from __future__ import annotations

from pathlib import Path

from mover.job import Job, load_job
from mover.storage import open_store
from mover.store import Store


def job_of(argument: str) -> Job:
    """The job file named on the command line."""
    return load_job(Path(argument))


def is_job(argument: str) -> bool:
    """Whether `STORE|JOB` is a job: a file, or a name that ends in .toml; all else is a store's path or URL."""
    return argument.endswith(".toml") or Path(argument).is_file()


def store_of(argument: str) -> Store:
    """The store that `STORE|JOB` means."""
    if is_job(argument):
        return open_store(job_of(argument).store)
    return Store.open(argument)
