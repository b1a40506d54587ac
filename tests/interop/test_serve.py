"""`mover serve` before programs that are not ours: nbdinfo, nbdcopy, nbdfuse, qemu-img, nbd-client, and debugfs."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.disks_fixtures import needs, run
from tests.serve_fixtures import MiB, ext4_image, patchy, serving, store_with
from tests.simulator_fixtures import in_thread
from tests.store_fixtures import noise

SECRET = noise("a file of the guest", 3 * MiB + 17)
FILES = {"etc/motd": b"a guest's greeting\n", "srv/data.bin": SECRET}

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here, or not for this user"
)
needs_kernel = pytest.mark.skipif(
    not os.path.exists("/dev/nbd0"), reason="no /dev/nbd0: this kernel has no nbd module loaded"
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ext4_image(tmp_path_factory.mktemp("guest"), FILES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, guest: bytes) -> Path:
    """A point with two disks: a file system, and one with holes and an odd end."""
    path = tmp_path_factory.mktemp("serve") / "store"
    store_with(path, [("root", guest), ("data", patchy())]).close()
    return path


@needs("nbdinfo", "mkfs.ext4")
async def test_nbdinfo_sees_the_size_and_that_several_connections_may_read(store: Path, guest: bytes) -> None:
    async with serving(store, "latest") as served:
        code, output = await run("nbdinfo", "--json", served.uri(0))
        assert code == 0, output
        said = json.loads(output)
    assert (said["protocol"], said["structured"], said["TLS"]) == ("newstyle-fixed", True, False)
    (export,) = said["exports"]
    assert export["export-size"] == len(guest)
    assert export["contexts"] == ["base:allocation"]
    assert (export["is_read_only"], export["can_multi_conn"], export["can_df"]) == (True, True, True)
    assert (export["can_trim"], export["can_zero"], export["can_cache"]) == (False, False, False)


@needs("nbdinfo", "mkfs.ext4")
async def test_nbdinfo_lists_the_disks(store: Path, guest: bytes) -> None:
    async with serving(store, "latest") as served:
        code, output = await run("nbdinfo", "--json", "--list", served.uri(0))
    assert code == 0, output
    said = [(item["export-name"], item["description"], item["export-size"]) for item in json.loads(output)["exports"]]
    assert said == [("0", "root", len(guest)), ("1", "data", len(patchy()))]


@needs("nbdinfo", "qemu-img", "mkfs.ext4")
async def test_holes_are_holes(store: Path) -> None:
    """What the map calls a hole is zeros, and most of what is zeros is called so."""
    data = patchy()
    async with serving(store, "latest") as served:
        code, output = await run("nbdinfo", "--map", "--json", served.uri(1))
        assert code == 0, output
        found = [(item["offset"], item["length"], item["type"]) for item in json.loads(output)]
        code, output = await run("qemu-img", "map", "--output=json", "-f", "raw", served.uri(1))
        assert code == 0, output
        qemu = [(item["start"], item["length"], 0 if item["data"] else 3) for item in json.loads(output)]
    assert sum(length for _, length, _ in found) == len(data)
    holes = [(offset, length) for offset, length, kind in found if kind == 3]
    assert all(not any(data[offset : offset + length]) for offset, length in holes)
    chunks = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    assert sum(length for _, length in holes) == sum(len(chunk) for chunk in chunks if not any(chunk))
    assert qemu == found


@needs("nbdcopy", "mkfs.ext4")
@pytest.mark.parametrize(
    "options", [("--connections=1",), ("--connections=4",), ("--no-extents", "--synchronous")], ids=str
)
async def test_nbdcopy_gets_every_byte_of_each_disk(
    store: Path, guest: bytes, tmp_path: Path, options: tuple[str, ...]
) -> None:
    async with serving(store, "latest") as served:
        for position, data in enumerate((guest, patchy())):
            copy = tmp_path / str(position)
            code, output = await run("nbdcopy", *options, served.uri(position), str(copy))
            assert code == 0, output
            assert copy.read_bytes() == data


@needs("nbdcopy", "mkfs.ext4")
async def test_a_unix_socket(store: Path, guest: bytes, tmp_path: Path) -> None:
    socket = tmp_path / "nbd.sock"
    async with serving(store, "latest", "--disk", "root", "--socket", socket) as served:
        assert socket.stat().st_mode & 0o777 == 0o600
        code, output = await run("nbdcopy", served.uri(0), str(tmp_path / "copy"))
    assert code == 0, output
    assert (tmp_path / "copy").read_bytes() == guest
    assert not socket.exists()


@needs("qemu-img", "mkfs.ext4")
async def test_qemu_img_converts_and_compares(store: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(patchy())
    async with serving(store, "latest") as served:
        code, output = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri(1), str(tmp_path / "raw"))
        assert code == 0, output
        code, output = await run("qemu-img", "convert", "-O", "qcow2", served.uri(1), str(tmp_path / "qcow2"))
        assert code == 0, output
    code, output = await run("qemu-img", "compare", str(tmp_path / "qcow2"), str(tmp_path / "raw"))
    assert code == 0, output


@needs("nbdfuse", "debugfs", "mkfs.ext4")
@needs_fuse
async def test_single_files_through_a_mount(store: Path, guest: bytes, tmp_path: Path) -> None:
    """debugfs reads ext4 by itself: the guest's file system never meets this kernel, and nobody has to be root."""
    async with serving(store, "latest") as served, mounted(served.uri(0), tmp_path) as image:
        assert image.stat().st_size == len(guest)
        code, output = await run("debugfs", "-R", "cat /etc/motd", str(image))
        assert (code, output.splitlines()[-1]) == (0, "a guest's greeting")
        code, output = await run("debugfs", "-R", f"dump /srv/data.bin {tmp_path}/data.bin", str(image))
        assert code == 0, output
        assert (tmp_path / "data.bin").read_bytes() == SECRET
        code, output = await run("debugfs", "-R", f"rdump /etc {tmp_path}", str(image))
        assert code == 0, output
        assert (tmp_path / "etc/motd").read_bytes() == FILES["etc/motd"]


@asynccontextmanager
async def mounted(uri: str, folder: Path) -> AsyncIterator[Path]:
    """The export as a file, by nbdfuse."""
    (folder / "mount").mkdir()
    os.mkfifo(folder / "ready")
    process = await asyncio.create_subprocess_exec(
        "nbdfuse", "--readonly", f"--pidfile={folder}/ready", str(folder / "mount/disk.img"), uri
    )
    try:
        async with asyncio.timeout(60):
            await in_thread((folder / "ready").read_text)  # it writes its number there once all is mounted
        yield folder / "mount/disk.img"
    finally:
        process.terminate()
        await process.wait()
        assert not (folder / "mount").is_mount()


@needs("nbdcopy", "debugfs", "mkfs.ext4")
async def test_single_files_out_of_a_copy_without_root(store: Path) -> None:
    """By a user who may do nothing, if root runs this."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        async with serving(store, "latest") as served:
            for command in (
                ["nbdcopy", served.uri(0), f"{folder}/root.img"],
                ["debugfs", "-R", f"dump /srv/data.bin {folder}/data.bin", f"{folder}/root.img"],
            ):
                process = await asyncio.create_subprocess_exec(*command, cwd=folder, **nobody)
                assert await process.wait() == 0
        assert Path(folder, "data.bin").read_bytes() == SECRET
        assert Path(folder, "data.bin").stat().st_uid == nobody.get("user", os.geteuid())


@needs("nbd-client", "mkfs.ext4")
async def test_the_kernels_own_client_lists_the_disks(store: Path) -> None:
    """The part of it that needs no kernel module."""
    async with serving(store, "latest") as served:
        address, port = served.uri(0).removeprefix("nbd://").split("/")[0].split(":")
        code, output = await run("nbd-client", "-l", address, port)
    assert code == 0, output
    assert output.splitlines()[-2:] == ["0: root", "1: data"]


@needs("nbd-client", "mkfs.ext4")
@needs_kernel
async def test_the_kernel_client_reads_the_same(store: Path, guest: bytes) -> None:
    async with serving(store, "latest") as served:
        address, port = served.uri(0).removeprefix("nbd://").split("/")[0].split(":")
        code, output = await run("nbd-client", address, port, "/dev/nbd0", "-name", "0", "-readonly")
        assert code == 0, output
        try:
            assert Path("/dev/nbd0").read_bytes() == guest
        finally:
            await run("nbd-client", "-d", "/dev/nbd0")
