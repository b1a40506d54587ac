"""Facts of the machine, so that figures from elsewhere are not taken for ours."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers import NEEDED, PEERS, version_of


def facts(work: Path) -> dict[str, Any]:
    """Processors, memory, kernel, the file system of the work folder, versions, and how busy it was."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "file system": _said("stat", "-f", "-c", "%T", str(work)),
        "load before": os.getloadavg()[0],
        "commit": _said("git", "rev-parse", "--short", "HEAD"),
        "changed files": len(_said("git", "status", "--porcelain", "--", "mover", "protocol").splitlines()),
        "packages": {name: metadata.version(name) for name in ("zstandard", "blake3", "numpy", "uvloop", "aiohttp")},
        "programs": {program: version_of(program) for program in {**PEERS, **NEEDED} if program != "mkfs.ext4"},
    }


def _field(path: Path, name: str) -> str | None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
