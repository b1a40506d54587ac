"""Link the distribution's libnbd binding into the virtual environment that runs this file.

The binding (`nbd.py` and the extension module `libnbdmod`) is packaged by distributions for their own Python and is
not on PyPI. Two symbolic links make it importable here without opening the environment to the distribution's other
packages. Exit code 1 and one sentence on stderr where it cannot be had.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

_FIND = "import nbd, libnbdmod; print(nbd.__file__); print(libnbdmod.__file__)"


def main() -> int:
    base = getattr(sys, "_base_executable", None) or sys.executable
    found = subprocess.run([base, "-I", "-c", _FIND], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        print(
            f"{base} cannot import libnbd's Python binding (`import nbd`). Install it from the distribution "
            "(Debian, Ubuntu: python3-libnbd; Fedora: python3-libnbd) and make the environment with the "
            "distribution's own python3.",
            file=sys.stderr,
        )
        return 1
    target = Path(sysconfig.get_paths()["platlib"])
    for source in map(Path, found.stdout.split()):
        link = target / source.name
        if link.is_symlink() and link.readlink() == source:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
