"""VHD streams of the simulator before readers that are not ours: libvhdi and qemu-img."""

import asyncio
import os
import random
import uuid
from pathlib import Path

import pytest

from mover.simulator.storage import Disks
from mover.simulator.vdi_stream import export_raw, export_vhd, import_vhd
from protocol import vhd
from tests.disks_fixtures import KiB, MiB, needs, run, scattered
from tests.libvhdi_fixtures import by_libvhdi, needs_pyvhdi


class FileSend:
    """Takes a stream into a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> "FileSend":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    async def write(self, data: bytes) -> None:
        self._file.write(data)

    async def sendfile(self, fd: int, offset: int, length: int) -> None:
        self._file.write(os.pread(fd, length, offset))


async def exported(disks: Disks, name: str, path: Path, base: str | None = None, creator: bytes = b"caml") -> Path:
    with FileSend(path) as send:
        await export_vhd(disks, name, base, send, creator=creator)
    return path


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "sr")


@needs_pyvhdi
@pytest.mark.parametrize("size", [2 * MiB, 14 * MiB, 9 * MiB + 64 * KiB, 5 * MiB + 512])
async def test_libvhdi_reads_an_export(disks: Disks, tmp_path: Path, size: int) -> None:
    content = scattered(disks, "d", size)
    path = await exported(disks, "d", tmp_path / "d.vhd")
    assert await by_libvhdi(tmp_path / "raw", path) == content


@needs_pyvhdi
async def test_libvhdi_reads_a_chain_whose_parent_is_named_anew(disks: Disks, tmp_path: Path) -> None:
    """A differencing export names its parent by an id no export has; given the right one, readers take the chain."""
    before = scattered(disks, "d", 24 * MiB)
    disks.snapshot("d", "s1")
    base = await exported(disks, "s1", tmp_path / "base.vhd", creator=b"tap\0")
    after = bytearray(before)
    rng = random.Random(2)
    for _ in range(4):
        offset, data = rng.randrange(23 * MiB), rng.randbytes(100 * KiB)
        disks.write("d", offset, data)
        after[offset : offset + len(data)] = data
    disks.snapshot("d", "s2")
    delta = bytearray((await exported(disks, "s2", tmp_path / "delta.vhd", "s1", creator=b"tap\0")).read_bytes())
    head = vhd.parse_head(delta)
    assert head is not None
    assert head.footer.kind == vhd.DIFFERENCING
    assert len(delta) < base.stat().st_size
    parent = vhd.parse_footer(base.read_bytes()[:512]).unique_id
    assert head.header.parent != parent
    fresh = vhd.VhdWriter(
        24 * MiB, [n for n, at in enumerate(head.bat) if at != vhd.ABSENT], parent=(parent, "base.vhd")
    )
    whole = fresh.head()
    delta[: len(whole)] = whole
    delta[-512:] = fresh.trailer()
    (tmp_path / "delta.vhd").write_bytes(delta)
    assert await by_libvhdi(tmp_path / "raw", base, tmp_path / "delta.vhd") == after


@needs("qemu-img")
@pytest.mark.parametrize("size", [14 * MiB, 100 * MiB + 64 * KiB])
async def test_qemu_img_compares_equal(disks: Disks, tmp_path: Path, size: int) -> None:
    scattered(disks, "d", size)
    path = await exported(disks, "d", tmp_path / "d.vhd", creator=b"tap\0")
    with FileSend(tmp_path / "raw") as send:
        await export_raw(disks, "d", send)
    code, output = await run("qemu-img", "compare", "-f", "raw", "-F", "vpc", str(tmp_path / "raw"), str(path))
    assert code == 0, output
    assert "identical" in output


@needs("qemu-img")
@pytest.mark.parametrize("options", ["subformat=dynamic,force_size=on", "subformat=dynamic"])
async def test_a_vhd_made_by_qemu_img_can_be_imported(disks: Disks, tmp_path: Path, options: str) -> None:
    content = scattered(disks, "source", 16 * MiB)
    (tmp_path / "raw").write_bytes(content)
    path = tmp_path / "made.vhd"
    code, output = await run(
        "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, str(tmp_path / "raw"), str(path)
    )
    assert code == 0, output
    disks.create("target", 18 * MiB)  # without force_size qemu rounds up to whole cylinders
    reader = asyncio.StreamReader()
    reader.feed_data(path.read_bytes())
    reader.feed_eof()
    await import_vhd(disks, "target", reader, path.stat().st_size)
    assert disks.read("target", 0, 16 * MiB) == content


@needs_pyvhdi
async def test_libvhdi_agrees_on_sector_bitmaps(disks: Disks, tmp_path: Path) -> None:
    """Sectors whose bit is clear come from the parent: for libvhdi in a chain, for the import on a disk.

    libvhdi 20210425 takes all bits of a byte after a set one for set too, hence these bytes; they do tell the order.
    """
    rng = random.Random(3)
    parent_id = uuid.uuid4()
    base = vhd.VhdWriter(4 * MiB, [0, 1], unique_id=parent_id)
    blocks = [rng.randbytes(2 * MiB), rng.randbytes(2 * MiB)]
    full = base.head() + b"".join(base.block_prefix() + block for block in blocks) + base.trailer()
    child = vhd.VhdWriter(4 * MiB, [1], parent=(parent_id, "base.vhd"))
    bitmap, new = bytes(rng.choices([0x00, 0x01, 0x0F, 0x7F, 0xFF], k=512)), rng.randbytes(2 * MiB)
    delta = child.head() + bitmap + new + child.trailer()
    (tmp_path / "base.vhd").write_bytes(full)
    (tmp_path / "child.vhd").write_bytes(delta)
    disks.create("d", 4 * MiB)
    for stream in (full, delta):
        reader = asyncio.StreamReader()
        reader.feed_data(stream)
        reader.feed_eof()
        await import_vhd(disks, "d", reader, len(stream))
    theirs = await by_libvhdi(tmp_path / "raw", tmp_path / "base.vhd", tmp_path / "child.vhd")
    assert disks.read("d", 0, 4 * MiB) == theirs
    assert theirs[2 * MiB :] not in (new, blocks[1])
