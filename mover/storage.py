"""The store that a job names: [store] into an opened store."""

from __future__ import annotations

import os
from pathlib import Path

from mover.errors import JobError
from mover.job import StoreSection, read_secret
from mover.store import S3Access, Store
from protocol.secret import Secret

# Opens encrypted stores for which no other passphrase is named.
PASSPHRASE_VARIABLE = "MOVER_PASSPHRASE"


def open_store(section: StoreSection, passphrase: Secret | None = None) -> Store:
    """Open it with this passphrase, or the one that the job names.

    Raises `StoreMissingError`, `SecretError`, `JobError` and what `Store.open` raises.
    """
    return _open(section.url, passphrase or _passphrase(section), _s3(section))


def open_url(url: str, passphrase: Secret | None = None) -> Store:
    """Open the store at a path or URL. Raises as `Store.open` does."""
    return _open(url, passphrase, None)


def create_store(section: StoreSection) -> Store:
    """Make it, as the job says: encrypted if it names a passphrase. Raises as `Store.create` does."""
    return Store.create(
        section.url,
        chunk_size=section.chunk_size,
        compression=section.compression,
        passphrase=_passphrase(section),
        s3=_s3(section),
    )


def _open(url: str, passphrase: Secret | None, s3: S3Access | None) -> Store:
    """A passphrase that was named for this store says that it is encrypted; the variable may be meant for others."""
    if passphrase is not None:
        return Store.open(url, passphrase=passphrase, encrypted=True, s3=s3)
    general = os.environ.get(PASSPHRASE_VARIABLE)
    return Store.open(url, passphrase=Secret(general) if general else None, s3=s3)


def _passphrase(section: StoreSection) -> Secret | None:
    if not (section.passphrase_file or section.passphrase_env or section.passphrase_command):
        return None
    return read_secret(
        "the store's passphrase",
        file=section.passphrase_file,
        env=section.passphrase_env,
        command=section.passphrase_command,
    )


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
