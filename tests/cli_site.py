"""A simulated pool in a process, a job for it, and the command line as an operator has it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import fork_server

MiB = 1 << 20
MOVER = [sys.executable, "-m", "mover"]
PASSWORD = "correct-horse-battery"


@dataclass
class Site:
    """A simulated pool in a process, a job for it, and everything that was printed so far."""

    folder: Path
    pool: dict[str, Any]
    printed: list[str] = field(default_factory=list)

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    def tell(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Steer the pool."""
        body = json.dumps({"op": operation, **arguments}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.pool["steering"], body), timeout=60) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def environment(self) -> dict[str, str]:
        return {**os.environ, "POOL_PASSWORD": self.pool["password"]}

    def mover(self, *arguments: object, code: int = 0) -> str:
        """Run a command to its end; its stdout."""
        done = fork_server.run(
            [*MOVER, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=self.environment(),
        )
        self.printed += [done.stdout, done.stderr]
        assert done.returncode == code, done.stderr
        return done.stdout

    def interrupted(self, *arguments: object) -> tuple[str, str]:
        """Run a command that is interrupted once a disk is planned; its stdout and stderr."""
        with fork_server.Popen(
            [*MOVER, *map(str, arguments), "--progress", "json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        ) as process:
            assert process.stderr is not None and process.stdout is not None
            said = ""
            for line in process.stderr:
                said += line
                if '"disk.planned"' in line:
                    process.send_signal(signal.SIGINT)
                    break
            said += process.stderr.read()
            printed = process.stdout.read()
            assert process.wait(60) == 130, said
        self.printed += [printed, said]
        return printed, said


def on_a_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run a command with a terminal of 100 columns for everything; its exit code and all that was shown."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with fork_server.Popen(
        [*MOVER, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=inherited | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # The other end is closed: Linux says so with EIO.
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        return process.wait(60), shown.decode()


@contextmanager
def cli_site(tmp_path: Path) -> Iterator[Site]:
    """A running pool without VMs, and a job for it."""
    with fork_server.Popen(
        [*MOVER, "simulate", "--dir", str(tmp_path / "pool"), "--password", PASSWORD, "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        here = Site(tmp_path, json.loads(process.stdout.readline()))
        pins = json.dumps(here.pool["fingerprints"])
        here.job.write_text(
            f'[pool]\nurl = "{here.pool["url"]}"\nusername = "{here.pool["username"]}"\n'
            f'password-env = "POOL_PASSWORD"\nfingerprint = {pins}\n'
            f'[store]\nurl = "file://{tmp_path}/store"\n[[vms]]\nname = "web*"\n'
            f'[report]\nlog = "{tmp_path}/log/{{job}}.jsonl"\nprometheus = "{tmp_path}/mover.prom"\n'
        )
        try:
            yield here
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
