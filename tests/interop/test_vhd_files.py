"""VHD files of our writer before qemu-img and libvhdi, and those of qemu-img before our reader."""

import json
import os
import random
import shutil
import uuid
from pathlib import Path

import pytest

from protocol.errors import FormatError
from protocol.vhd import BLOCK_SIZE, DYNAMIC, VhdWriter, parse_head
from protocol.vhd_stream import Data, VhdReader
from tests.disks_fixtures import KiB, MiB, needs, run
from tests.libvhdi_fixtures import by_libvhdi, needs_pyvhdi

# Sizes that cylinders, heads and sectors cannot say are among them.
SIZES = [64 * KiB, 7 * MiB, 9 * MiB + 4 * KiB, 100 * MiB + 64 * KiB]


def content_of(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    content = bytearray(size)
    for offset in {0, size // 2, size - 512}:
        piece = rng.randbytes(min(70_000, size - offset))
        content[offset : offset + len(piece)] = piece
    return bytes(content)


def write(
    path: Path, content: bytes, numbers: list[int], unique_id: uuid.UUID, parent: tuple[uuid.UUID, str] | None = None
) -> None:
    writer = VhdWriter(len(content), numbers, parent=parent, unique_id=unique_id)
    blocks = [content[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE] for number in numbers]
    body = b"".join(writer.block_prefix() + block.ljust(BLOCK_SIZE, b"\0") for block in blocks)
    path.write_bytes(writer.head() + body + writer.trailer())


def occupied(content: bytes) -> list[int]:
    return [
        number for number in range(-(-len(content) // BLOCK_SIZE)) if any(content[number * BLOCK_SIZE :][:BLOCK_SIZE])
    ]


def read(path: Path, size: int, *, announced: bool) -> bytes:
    stream = path.read_bytes()
    reader = VhdReader(len(stream) if announced else None)
    content = bytearray(size + BLOCK_SIZE)
    for at in range(0, len(stream), 300_000):
        for event in reader.feed(stream[at : at + 300_000]):
            if isinstance(event, Data):
                content[event.offset : event.offset + len(event.view)] = event.view
    reader.finish()
    assert not any(content[size:])
    return bytes(content[:size])


@needs("qemu-img")
@pytest.mark.parametrize("size", SIZES)
async def test_qemu_img_reads_ours(tmp_path: Path, size: int) -> None:
    content = content_of(size)
    ours, raw, back = tmp_path / "ours.vhd", tmp_path / "raw", tmp_path / "back"
    raw.write_bytes(content)
    write(ours, content, occupied(content), uuid.uuid4())
    code, output = await run("qemu-img", "info", "--output=json", "-f", "vpc", str(ours))
    assert code == 0, output
    assert json.loads(output)["virtual-size"] == size
    code, output = await run("qemu-img", "compare", "-f", "raw", "-F", "vpc", str(raw), str(ours))
    assert code == 0, output
    code, output = await run("qemu-img", "convert", "-f", "vpc", "-O", "raw", str(ours), str(back))
    assert code == 0, output
    assert back.read_bytes() == content


@needs("qemu-img")
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
async def test_a_dynamic_disk_of_qemu_img_is_read(tmp_path: Path, size: int, announced: bool) -> None:
    content = content_of(size)
    raw, theirs = tmp_path / "raw", tmp_path / "theirs.vhd"
    raw.write_bytes(content)
    options = ["-o", "subformat=dynamic,force_size=on"]
    code, output = await run("qemu-img", "convert", "-f", "raw", "-O", "vpc", *options, str(raw), str(theirs))
    assert code == 0, output
    assert read(theirs, size, announced=announced) == content
    head = parse_head(theirs.read_bytes())
    assert head is not None
    assert (head.size, head.footer.kind) == (size, DYNAMIC)


@needs("qemu-img")
@pytest.mark.parametrize("announced", [True, False])
async def test_an_empty_disk_of_qemu_img_is_read(tmp_path: Path, announced: bool) -> None:
    theirs = tmp_path / "theirs.vhd"
    code, output = await run("qemu-img", "create", "-f", "vpc", "-o", "force_size=on", str(theirs), "64M")
    assert code == 0, output
    assert read(theirs, 64 * MiB, announced=announced) == bytes(64 * MiB)


@needs("qemu-img")
async def test_a_fixed_disk_is_refused(tmp_path: Path) -> None:
    """It has no head to begin with; as a stream it is a raw disk with something behind it."""
    code, output = await run("qemu-img", "create", "-f", "vpc", "-o", "subformat=fixed", str(tmp_path / "f.vhd"), "2M")
    assert code == 0, output
    with pytest.raises(FormatError, match="no footer"):
        read(tmp_path / "f.vhd", 2 * MiB, announced=True)


@needs_pyvhdi
async def test_libvhdi_reads_a_chain_of_ours(tmp_path: Path) -> None:
    """Three files, each the parent of the next; some blocks in one, some in several, some in none."""
    rng = random.Random(4)
    size = 11 * MiB + 4 * KiB
    chain: list[Path] = []
    content = bytearray(size)
    parent: tuple[uuid.UUID, str] | None = None
    for name, numbers in (("base", [0, 1, 4]), ("middle", [1, 2]), ("leaf", [1, 5])):
        for number in numbers:
            start, end = number * BLOCK_SIZE, min((number + 1) * BLOCK_SIZE, size)
            content[start:end] = rng.randbytes(end - start)
        own_id = uuid.uuid4()
        chain.append(tmp_path / f"{name}.vhd")
        write(chain[-1], bytes(content), numbers, own_id, parent)
        parent = own_id, chain[-1].name
        assert await by_libvhdi(tmp_path / "raw", *chain) == content


UNMOUNT = next((name for name in ("fusermount3", "fusermount", "umount") if shutil.which(name)), "umount")
may_mount = pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or (UNMOUNT == "umount" and os.geteuid() != 0),
    reason="no /dev/fuse, or neither fusermount nor root",
)


@needs("vhdimount")
@may_mount
async def test_vhdimount_shows_a_chain_of_ours(tmp_path: Path) -> None:
    """It finds the parent by the name in the child's header, in the child's folder."""
    base_id = uuid.uuid4()
    before, after = content_of(9 * MiB + 4 * KiB), content_of(9 * MiB + 4 * KiB, seed=2)
    write(tmp_path / "base.vhd", before, occupied(before), base_id)
    write(tmp_path / "child.vhd", after, [0, 4], uuid.uuid4(), (base_id, "base.vhd"))
    folder = tmp_path / "mounted"
    folder.mkdir()
    code, output = await run("vhdimount", str(tmp_path / "child.vhd"), str(folder))
    assert code == 0, output
    try:
        # The files of the chain are numbered from the base on.
        shown = {path.name: path.read_bytes() for path in folder.iterdir()}
    finally:
        code, output = await run(UNMOUNT, *(["-u"] if UNMOUNT != "umount" else []), str(folder))
    assert code == 0, output
    assert shown[max(shown)] == after[: 2 * MiB] + before[2 * MiB : 8 * MiB] + after[8 * MiB :]


@needs("vhdiinfo")
async def test_vhdiinfo_names_type_ids_and_parent(tmp_path: Path) -> None:
    base, child = uuid.uuid4(), uuid.uuid4()
    write(tmp_path / "base.vhd", bytes(5 * MiB), [], base)
    write(tmp_path / "child.vhd", bytes(5 * MiB), [1], child, (base, "base.vhd"))
    code, output = await run("vhdiinfo", str(tmp_path / "base.vhd"))
    assert code == 0, output
    assert "Dynamic" in output
    assert f"({5 * MiB} bytes)" in output
    assert str(base) in output
    code, output = await run("vhdiinfo", str(tmp_path / "child.vhd"))
    assert code == 0, output
    for expected in ("Differential", str(child), str(base), "base.vhd"):
        assert expected in output
