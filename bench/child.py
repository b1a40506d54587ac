"""Ours in a process of its own, so that its peak of memory is its own.

`call` has it forked from one that has imported everything, which saves a second each time and changes nothing of what
is measured: an operation takes its own time, and the peak (`rss`, in MiB) is that of the process from its start, with
what is imported. `call_afresh` starts a new interpreter, for those who measure that as well.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import IO, Any

from bench.measure import Sample


def call(operation: str, **arguments: Any) -> Sample:
    """Run one of `bench.operations` in a child process. Raises `RuntimeError` with what it said if it fails."""
    requests, answers = _forking()
    return _ask(requests, answers, operation, arguments)


def call_afresh(operation: str, **arguments: Any) -> Sample:
    """As `call`, in a new interpreter. The sample's facts have `process`: seconds from its start to its end."""
    started = time.perf_counter()
    with _interpreter() as process:
        assert process.stdin is not None and process.stdout is not None
        sample = _ask(process.stdin, process.stdout, operation, arguments)
        process.stdin.close()
        process.wait()
    return Sample(sample.seconds, {**sample.facts, "process": time.perf_counter() - started})


@cache
def _forking() -> tuple[IO[str], IO[str]]:
    process = _interpreter()
    atexit.register(process.kill)
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _interpreter() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(requests: IO[str], answers: IO[str], operation: str, arguments: dict[str, Any]) -> Sample:
    requests.write(json.dumps([operation, arguments]) + "\n")
    requests.flush()
    facts = json.loads(answers.readline() or '{"error": "its process is gone"}')
    if "error" in facts:
        raise RuntimeError(f"{operation}: {facts['error']}")
    return Sample(facts.get("seconds", 0.0), facts)


def peak_rss() -> float:
    """MiB. Not what `getrusage` says: that begins with the memory of the process that forked this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Run an operation for each line of standard input, in a fork; print what it returns as a line."""
    from bench.operations import OPERATIONS

    # Nothing else may write where the answers go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.collect()
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            with os.fdopen(theirs, "w") as answer:
                answer.write(json.dumps(_run(OPERATIONS[operation], arguments)))
                answer.flush()
                # Not the exit of a copy of the process that waits for requests.
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        gone = {"error": f"its process ended with {os.waitstatus_to_exitcode(status)}"}
        print(text or json.dumps(gone), file=answers, flush=True)


def _run(operation: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    import uvloop

    from mover.malloc import keep_freed_memory

    keep_freed_memory()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            facts = runner.run(operation(**arguments))
    except Exception:  # noqa: BLE001 - whoever asked is told
        return {"error": traceback.format_exc()[-2000:]}
    return {**facts, "rss": peak_rss()}


if __name__ == "__main__":
    main()
