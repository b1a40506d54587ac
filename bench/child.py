"""Ours in a process of its own, so that its peak of memory is its own: `python -m bench.child OPERATION < JSON`.

Prints what the operation returns, as JSON, with `rss` in MiB added: the peak of this process from its start, imports
included.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import Sample


def call(operation: str, **arguments: Any) -> Sample:
    """Run one of `bench.operations` in a child process.

    Raises `RuntimeError` with what it said if it fails.

    The sample's facts have `process`: seconds from its start to its end.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "bench.child", operation],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    process = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{operation}: {done.stderr.strip()[-2000:]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    return Sample(facts.get("seconds", process), {**facts, "process": process})


def peak_rss() -> float:
    """MiB. Not what `getrusage` says: that begins with the memory of the process that forked this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Run one operation."""
    import uvloop

    from bench.operations import OPERATIONS
    from mover.malloc import keep_freed_memory

    keep_freed_memory()
    operation = OPERATIONS[sys.argv[1]]
    arguments = json.loads(sys.stdin.read())
    gc.collect()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        facts = runner.run(operation(**arguments))
    print(json.dumps({**facts, "rss": peak_rss()}))


if __name__ == "__main__":
    main()
