"""Arguments that name a job or a store."""

from __future__ import annotations

from pathlib import Path

from mover.job import Job, load_job
from mover.store import Store


def job_of(argument: str) -> Job:
    """The job file named on the command line."""
    return load_job(Path(argument))


def store_of(argument: str) -> Store:
    """The store that `STORE|JOB` means: a file, or a name that ends in .toml, is a job; all else is a path or URL."""
    if argument.endswith(".toml") or Path(argument).is_file():
        return Store.open(job_of(argument).store.url)
    return Store.open(argument)
