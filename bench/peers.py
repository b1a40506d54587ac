"""Programs to be compared with, and how to get them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# The program, and the package of Debian and Ubuntu that has it.
PEERS = {
    "zstd": "zstd",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "borg": "borgbackup",
    "restic": "restic",
}
NEEDED = {"nbdkit": "nbdkit", "mkfs.ext4": "e2fsprogs"}


def find_peer(program: str) -> str | None:
    """Its path, or None."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing(programs: dict[str, str]) -> dict[str, str]:
    """Those that are not there, with their packages."""
    return {program: package for program, package in programs.items() if find_peer(program) is None}


def install_peers() -> None:
    """Install what is missing with apt-get. Raises `SystemExit` where that cannot be done."""
    packages = list(missing(PEERS | NEEDED).values())
    if not packages:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SystemExit(f"only root on Debian or Ubuntu can be helped; install these: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    subprocess.run([*install, *packages], check=True, env=environment)


def version_of(program: str) -> str | None:
    """The first line of what it says of itself."""
    path = find_peer(program)
    if path is None:
        return None
    option = "version" if program == "restic" else "--version"
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "")


def borg_environment(folder: Path) -> dict[str, str]:
    """Everything borg and restic keep goes to `folder`, and neither asks anything."""
    return {
        **os.environ,
        "BORG_BASE_DIR": str(folder),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": str(folder / "cache"),
    }
