"""The store that a job names: [store] into an opened store."""

from __future__ import annotations

from pathlib import Path

from mover.errors import JobError
from mover.job import StoreSection, read_secret
from mover.store import S3Access, Store


def open_store(section: StoreSection) -> Store:
    """Open it. Raises `StoreMissingError`, `SecretError`, `JobError` and what `Store.open` raises."""
    return Store.open(section.url, s3=_s3(section))


def create_store(section: StoreSection) -> Store:
    """Make it, as the job says. Raises as `Store.create` does."""
    return Store.create(section.url, chunk_size=section.chunk_size, compression=section.compression, s3=_s3(section))


def _s3(section: StoreSection) -> S3Access | None:
    """How the job says the bucket is reached."""
    if not section.url.startswith("s3://"):
        return None
    secret = None
    if section.secret_access_key_file or section.secret_access_key_env or section.secret_access_key_command:
        secret = read_secret(
            "the secret access key of the store",
            file=section.secret_access_key_file,
            env=section.secret_access_key_env,
            command=section.secret_access_key_command,
        )
    try:
        ca = Path(section.ca_file).read_bytes() if section.ca_file else None
    except OSError as error:
        raise JobError(f"[store]: cannot read {section.ca_file}: {error.strerror}") from error
    return S3Access(
        endpoint=section.endpoint,
        region=section.region,
        access_key_id=section.access_key_id,
        secret_access_key=secret,
        ca=ca,
        retry_for=section.retry_for,
    )
