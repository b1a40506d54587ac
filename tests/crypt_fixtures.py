"""What tests of encrypted stores share: passphrases, and keys that are cheap to unwrap."""

from __future__ import annotations

from pathlib import Path

from mover.store import Cost, Store
from protocol.secret import Secret

PASSPHRASE = Secret("correct horse battery staple")
CHEAP = Cost(memory=64, passes=1, lanes=1)


def create(path: Path, compression: str = "zstd:1") -> Store:
    """An encrypted store."""
    return Store.create(path, passphrase=PASSPHRASE, cost=CHEAP, compression=compression)
