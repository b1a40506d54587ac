"""libvhdi, by way of its Python module, reads VHDs and chains of them."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.disks_fixtures import run

PYTHON = "/usr/bin/python3"  # that of the distribution, which has libvhdi's module
_FOUND = (
    os.path.exists(PYTHON)
    and not subprocess.run([PYTHON, "-c", "import pyvhdi"], capture_output=True, check=False).returncode
)
needs_pyvhdi = pytest.mark.skipif(not _FOUND, reason="not installed: python3-libvhdi")
READ = """
import pyvhdi, sys
files = []
for path in sys.argv[2:]:
    file = pyvhdi.file()
    file.open(path)
    if files:
        file.set_parent(files[-1])
    files.append(file)
file = files[-1]
with open(sys.argv[1], "wb") as out:
    while file.get_offset() < file.get_media_size():
        out.write(file.read_buffer(min(1 << 20, file.get_media_size() - file.get_offset())))
"""


async def by_libvhdi(target: Path, *chain: Path) -> bytes:
    """The content of the last file of a chain whose first stands alone."""
    code, output = await run(PYTHON, "-c", READ, str(target), *map(str, chain))
    assert code == 0, output
    return target.read_bytes()
