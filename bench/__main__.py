"""`python -m bench NAME [ARGS]`: run one benchmark; without a name, say which there are."""

from __future__ import annotations

import runpy
import sys

_BENCHMARKS = {
    "full": "a full over NBD into a new store, beside zstd",
    "nbd_read": "reading over NBD, beside nbdcopy; TLS, connections, read plans",
    "store_seal": "sealing chunks into packs, beside zstd",
    "store_index": "building and searching a large index",
}


def main() -> int:
    """Returns the exit code of the benchmark."""
    if len(sys.argv) < 2 or sys.argv[1] not in _BENCHMARKS:
        for name, about in _BENCHMARKS.items():
            print(f"{name:12} {about}")
        return 2
    module = f"bench.{sys.argv.pop(1)}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
