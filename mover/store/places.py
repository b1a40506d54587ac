"""Which back end a path or URL means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mover.errors import UsageError
from mover.store.backend import Backend, Mapping
from mover.store.cipher import AesGcm, Cipher
from mover.store.directory import DirectoryBackend
from mover.store.local_copies import LocalCopies, cache_directory
from mover.store.opened import Opened
from mover.store.probe import refuse_unfit
from mover.store.s3.access import S3Access, split_url
from mover.store.s3.backend import S3Backend

Place = str | os.PathLike[str] | Backend


def open_backend(where: Place, *, make: bool = False, s3: S3Access | None = None) -> Backend:
    """The back end for a path, a `file://` or `s3://` URL; one that is a back end already is taken as it is.

    With `make` the place is made fit for a new store. `s3` says how to reach a bucket; without it the environment does.
    Raises `UsageError` for a scheme that is unknown, `StoreUnfitError`, `StoreIoError`.
    """
    if not isinstance(where, str | os.PathLike):
        return where
    text = os.fspath(where)
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        url = urlsplit(text)
        if url.scheme == "s3":
            bucket = S3Backend(*split_url(text), s3 or S3Access())
            if make:
                refuse_unfit(bucket)
            return bucket
        if url.scheme != "file" or url.netloc not in ("", "localhost"):
            raise UsageError(
                f"a store is a directory, file:///path or s3://bucket/prefix, not {url.scheme}://{url.netloc}"
            )
        text = unquote(url.path)
    directory = DirectoryBackend(os.path.abspath(os.path.expanduser(text)))
    if make:
        directory.make_root()
    return directory


def mapping_for(backend: Backend, store_id: str, cipher: Cipher) -> Mapping:
    """Where the index is mapped from: the back end itself if its objects are files, otherwise copies here.

    Of an encrypted store copies are kept that are not encrypted: see docs/encryption.md for what they tell.
    """
    folder = Path(cache_directory(), store_id)
    if isinstance(cipher, AesGcm):
        return LocalCopies(Opened(backend, cipher), folder)
    return backend if isinstance(backend, Mapping) else LocalCopies(backend, folder)
