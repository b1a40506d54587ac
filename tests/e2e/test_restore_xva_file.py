"""Restores to an XVA file: what a pool would import, made of a point of either strategy."""

import hashlib
from pathlib import Path

import pytest

from mover.backup.metadata import decode
from mover.events import DiskFinished
from mover.restore.files import restore_to_files
from mover.simulator import XCP_NG_8_2, XCP_NG_8_3, Options, Release
from mover.store import Point
from protocol.xva.ova import Ova
from protocol.xva.reader import BlockEnd, Data, DiskEnd, End, OvaXml, XvaReader, verify_block
from tests.disks_fixtures import needs, run
from tests.pool_fixtures import MiB, Site, fill_some, site

SIZES = [12 * MiB, 5 * MiB + 65536]


async def backed_up(here: Site) -> tuple[Point, list[bytes]]:
    vm = here.simulator.make_vm("web", SIZES, names=["root", "data"])
    vdis = here.simulator.vdis_of(vm)
    fill_some(here, vdis)
    contents = [here.content(vdi) for vdi in vdis]
    assert (await here.run()).exit_code == 0
    return here.store.point("latest"), contents


async def restored(here: Site, point: Point, folder: Path, disks: list[str] | None = None) -> tuple[Path, int]:
    """The file, and how many bytes were read from the store for it."""
    events: list[object] = []
    (file,) = await restore_to_files(here.store, point, folder, disks=disks or [], form="xva", emit=events.append)
    return file, sum(event.read for event in events if isinstance(event, DiskFinished))


def read(archive: bytes, step: int = 100_000) -> tuple[Ova, dict[str, bytes], int]:
    """The description, the disks by userdevice, and the number of blocks. Every checksum is compared."""
    reader = XvaReader()
    ova: Ova | None = None
    disks: dict[str, bytearray] = {}
    blocks = 0
    ended = False
    for start in range(0, len(archive), step):
        for event in reader.feed(archive[start : start + step]):
            match event:
                case OvaXml():
                    ova = event.ova
                    sizes = {vdi.id: int(vdi.snapshot["virtual_size"]) for vdi in ova.objects if vdi.cls == "VDI"}
                    disks = {ref: bytearray(size) for ref, size in sizes.items()}
                case Data(disk, offset, view):
                    disks[disk][offset : offset + len(view)] = view
                case BlockEnd():
                    blocks += 1
                    verify_block(bytes(disks[event.disk][event.offset : event.offset + event.length]), event)
                case DiskEnd(disk, end):
                    assert end == len(disks[disk])
                case End(length):
                    ended = length == len(archive)
    reader.finish()
    assert ended
    assert ova is not None
    drives = {vbd.snapshot["VDI"]: vbd.snapshot["userdevice"] for vbd in ova.objects if vbd.cls == "VBD"}
    return ova, {drives[ref]: bytes(content) for ref, content in disks.items()}, blocks


@pytest.mark.parametrize("release", [XCP_NG_8_3, XCP_NG_8_2], ids=["8.3", "8.2, no metadata of snapshots"])
async def test_an_xva_holds_the_disks_and_the_vm_as_it_ran(tmp_path: Path, release: Release):
    async with site(tmp_path, Options(release=release)) as here:
        point, contents = await backed_up(here)
        file, _ = await restored(here, point, tmp_path / "out")
        assert file == tmp_path / "out" / "web.xva"
        assert file.stat().st_mode & 0o777 == 0o600
        ova, disks, blocks = read(file.read_bytes())
        assert disks == {"0": contents[0], "1": contents[1]}
        assert blocks < 18, "blocks of zeros are left out"
        saved = decode(here.store.get_blob(point.record.metadata))
        assert ova.version["product_version"] == release.version
        (vm,) = [item.snapshot for item in ova.objects if item.cls == "VM"]
        for field in ("uuid", "name_label", "memory_static_max", "platform", "other_config", "bios_strings"):
            assert vm[field] == saved.vm[field], field
        assert (vm["is_a_template"], vm["is_a_snapshot"], vm["power_state"]) == (False, False, "Halted")
        (vif,) = [item.snapshot for item in ova.objects if item.cls == "VIF"]
        assert vif["MAC"] in {saved_vif["MAC"] for saved_vif in saved.vifs.values()}
        ids = {item.id for item in ova.objects}
        assert {vif["VM"], vif["network"]} <= ids
        assert (tmp_path / "out" / "web.json").exists()


async def test_single_disks(tmp_path: Path):
    async with site(tmp_path) as here:
        point, contents = await backed_up(here)
        file, _ = await restored(here, point, tmp_path / "out", ["data"])
        ova, disks, _ = read(file.read_bytes())
        assert disks == {"1": contents[1]}
        assert sorted(vbd.snapshot["type"] for vbd in ova.objects if vbd.cls == "VBD") == ["CD", "Disk"]


@pytest.mark.parametrize("left", [0, 1000, 3 * MiB + 7, 6 * MiB])
async def test_what_an_interrupted_restore_has_left_is_gone_on_with(tmp_path: Path, left: int):
    async with site(tmp_path) as here:
        point, _ = await backed_up(here)
        whole, all_of_it = await restored(here, point, tmp_path / "out")
        archive = whole.read_bytes()
        assert len(archive) > 7 * MiB
        again = tmp_path / "again"
        again.mkdir()
        (again / "web.xva.partial").write_bytes(archive[:left])
        file, read_again = await restored(here, point, again)
        assert file.read_bytes() == archive
        assert read_again <= all_of_it - left // MiB * MiB + MiB
        assert (await restored(here, point, again))[1] == 0, "a file that is right is left alone"


@pytest.mark.parametrize("at", [100, 1 << 20, -3000], ids=["in ova.xml", "in a block", "near the end"])
async def test_a_damaged_file_is_mended(tmp_path: Path, at: int):
    async with site(tmp_path) as here:
        point, _ = await backed_up(here)
        file, _ = await restored(here, point, tmp_path / "out")
        archive = file.read_bytes()
        damaged = bytearray(archive)
        damaged[at] ^= 0xFF
        file.write_bytes(damaged)
        assert (await restored(here, point, tmp_path / "out"))[0].read_bytes() == archive


@needs("tar", "xva-img")
async def test_gnu_tar_and_xva_img_read_it(tmp_path: Path):
    async with site(tmp_path) as here:
        point, contents = await backed_up(here)
        file, _ = await restored(here, point, tmp_path / "out")
        ova, _, _ = read(file.read_bytes())
        folder = tmp_path / "unpacked"
        folder.mkdir()
        code, output = await run("tar", "-xf", str(file), "-C", str(folder))
        assert (code, output) == (0, "")
        drives = {vbd.snapshot["VDI"]: vbd.snapshot["userdevice"] for vbd in ova.objects if vbd.cls == "VBD"}
        for vdi in (item for item in ova.objects if item.cls == "VDI"):
            names = {path.name for path in (folder / vdi.id).iterdir()}
            assert "00000000" in names
            for name in [name for name in names if name.endswith(".xxhash")]:
                # The program knows only the older checksums.
                block = folder / vdi.id / name.removesuffix(".xxhash")
                (folder / vdi.id / name).unlink()
                block.with_name(f"{block.name}.checksum").write_text(hashlib.sha1(block.read_bytes()).hexdigest())
            raw = tmp_path / "raw"
            raw.unlink(missing_ok=True)
            code, output = await run("xva-img", "-p", "disk-export", f"{folder / vdi.id}/", str(raw))
            assert code == 0, output
            position = int(drives[vdi.id])
            assert raw.read_bytes().ljust(len(contents[position]), b"\0") == contents[position]
