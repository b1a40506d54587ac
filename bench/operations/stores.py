"""How large stores are."""

from __future__ import annotations

from pathlib import Path

from bench.operations.place import Facts


async def stored_bytes(store: str) -> Facts:
    """What the store takes on disk: all of it, packs of data, and everything else."""
    sizes = {path: path.stat().st_size for path in Path(store).rglob("*") if path.is_file()}
    return {"seconds": 0.0, "all": sum(sizes.values())}
