"""XVAs before programs that are not ours: GNU tar, xva-img, gzip and zstd. What they make is read, too."""

import hashlib
import random
import subprocess
from pathlib import Path

import pytest

from protocol.xva.check import Kind
from protocol.xva.compression import Unpacker
from protocol.xva.reader import BLOCK
from protocol.xva.writer import XvaDisk, XvaWriter
from tests.disks_fixtures import needs, run
from tests.xva_fixtures import disks_in, ova_xml

SIZES = {"Ref:12": 5 * BLOCK + 4096, "Ref:2": 3 * BLOCK, "Ref:31": BLOCK}


def contents() -> dict[str, bytes]:
    """Disks of which some blocks are zeros: in the middle, and the last one."""
    rng = random.Random(5)
    made = {}
    for ref, size in SIZES.items():
        content = bytearray(size)
        for offset in range(0, size, 2 * BLOCK):
            piece = rng.randbytes(min(100_000, size - offset))
            content[offset : offset + len(piece)] = piece
        made[ref] = bytes(content)
    return made


def archive(disks: dict[str, bytes], checksum: Kind = "xxhash") -> bytes:
    plans = [
        XvaDisk(ref, len(data), [n for n in range(-(-len(data) // BLOCK)) if any(data[n * BLOCK : (n + 1) * BLOCK])])
        for ref, data in disks.items()
    ]
    writer = XvaWriter(ova_xml({ref: len(data) for ref, data in disks.items()}), plans, checksum=checksum)
    parts = [writer.head()]
    for disk in writer.disks:
        for number, offset, length in writer.disk_blocks(disk):
            data = disks[disk.ref][offset : offset + length]
            parts += [writer.block_head(disk.ref, number, length), data, writer.block_padding(length)]
            parts.append(writer.block_tail(disk.ref, number, writer.digest(data)))
    return b"".join([*parts, writer.trailer()])


@needs("tar")
async def test_gnu_tar_takes_an_archive_apart(tmp_path: Path) -> None:
    disks = contents()
    (tmp_path / "a.xva").write_bytes(archive(disks))
    code, listing = await run("tar", "-tf", str(tmp_path / "a.xva"))
    assert code == 0, listing
    names = listing.split()
    assert names[0] == "ova.xml"
    assert "Ref:12/00000005.xxhash" in names
    assert names == [names[0], *sorted(names[1:])]
    code, output = await run("tar", "-xf", str(tmp_path / "a.xva"), "-C", str(tmp_path))
    assert (code, output) == (0, "")
    for ref, content in disks.items():
        rebuilt = bytearray(len(content))
        for path in (tmp_path / ref).iterdir():
            if not path.suffix:
                data = path.read_bytes()
                rebuilt[int(path.name) * BLOCK : int(path.name) * BLOCK + len(data)] = data
        assert rebuilt == content
    assert (tmp_path / "ova.xml").read_bytes() == ova_xml(SIZES)


@needs("tar")
@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu"])
async def test_an_archive_made_by_gnu_tar_is_read(tmp_path: Path, form: str) -> None:
    disks = contents()
    (tmp_path / "a.xva").write_bytes(archive(disks))
    _, listing = await run("tar", "-tf", str(tmp_path / "a.xva"))
    await run("tar", "-xf", str(tmp_path / "a.xva"), "-C", str(tmp_path))
    again = str(tmp_path / "again.xva")
    names = tmp_path / "names"
    names.write_text(listing)
    code, output = await run(
        "tar", "-b", "1", "--format", form, "-cf", again, "-C", str(tmp_path), "--no-recursion", "-T", str(names)
    )
    assert code == 0, output
    assert disks_in((tmp_path / "again.xva").read_bytes()) == disks


@needs("tar", "xva-img")
async def test_xva_img_exports_the_disks(tmp_path: Path) -> None:
    """It knows only SHA-1, and finds out if one is wrong."""
    disks = contents()
    (tmp_path / "a.xva").write_bytes(archive(disks, "sha1"))
    code, output = await run("tar", "--mode=u+w", "-xf", str(tmp_path / "a.xva"), "-C", str(tmp_path))
    assert code == 0, output
    for ref, content in disks.items():
        code, output = await run("xva-img", "disk-export", f"{tmp_path / ref}/", str(tmp_path / "raw"))
        assert code == 0, output
        assert (tmp_path / "raw").read_bytes() == content
        (tmp_path / "raw").unlink()
    wrong = tmp_path / "Ref:2" / "00000000.checksum"
    wrong.chmod(0o600)
    wrong.write_text(hashlib.sha1(b"something else", usedforsecurity=False).hexdigest())
    code, output = await run("xva-img", "disk-export", f"{tmp_path / 'Ref:2'}/", str(tmp_path / "raw"))
    assert code != 0, output


@needs("xva-img")
async def test_an_archive_made_by_xva_img_is_read(tmp_path: Path) -> None:
    """Of whole blocks only: it drops the rest of a disk behind its last whole one."""
    disks = {ref: data[: len(data) // BLOCK * BLOCK] for ref, data in contents().items()}
    (tmp_path / "ova.xml").write_bytes(ova_xml({ref: len(data) for ref, data in disks.items()}))
    parts = [str(tmp_path / "ova.xml")]
    for ref, content in sorted(disks.items()):
        (tmp_path / ref).mkdir()
        (tmp_path / "raw").write_bytes(content)
        code, output = await run("xva-img", "disk-import", str(tmp_path / ref), str(tmp_path / "raw"))
        assert code == 0, output
        parts.append(f"{tmp_path / ref}/")
    code, output = await run("xva-img", "package", str(tmp_path / "a.xva"), *parts)
    assert code == 0, output
    assert disks_in((tmp_path / "a.xva").read_bytes()) == disks


@pytest.mark.parametrize(
    ("program", "options"),
    [("gzip", ["-1"]), ("gzip", ["-9"]), ("zstd", ["-1"]), ("zstd", ["-3", "-T2"]), ("zstd", ["-19", "--no-check"])],
    ids=str,
)
def test_what_programs_compress_is_read(tmp_path: Path, program: str, options: list[str]) -> None:
    disks = contents()
    stream = archive(disks)
    (tmp_path / "a.xva").write_bytes(stream)
    try:
        packed = subprocess.run(
            [program, *options, "-c", str(tmp_path / "a.xva")], capture_output=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip(f"not installed: {program}")
    assert len(packed) < len(stream)
    unpacker = Unpacker()
    pieces = [
        bytes(view) for start in range(0, len(packed), 70_000) for view in unpacker.feed(packed[start : start + 70_000])
    ]
    unpacker.finish()
    assert unpacker.compression == program
    assert b"".join(pieces) == stream
    assert disks_in(stream) == disks
