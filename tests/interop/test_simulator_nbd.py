"""The simulated NBD daemon before clients that are not ours: nbdinfo, nbdcopy, qemu-img."""

import json
from pathlib import Path

import pytest

from mover.simulator.nbd import Network
from mover.simulator.storage import Disks
from tests.disks_fixtures import KiB, MiB, nbd_daemon, needs, run, scattered, uri

SIZE = 24 * MiB + 64 * KiB


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "sr")


@needs("nbdinfo")
async def test_nbdinfo_sees_what_the_daemon_offers(disks: Disks, tmp_path: Path) -> None:
    scattered(disks, "d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon:
        code, output = await run("nbdinfo", "--json", uri(daemon, "d"))
    assert code == 0, output
    said = json.loads(output[output.index("{") :])
    assert said["protocol"] == "newstyle-fixed"
    assert said["TLS"] is False
    assert said["structured"] is False
    (export,) = said["exports"]
    assert export["export-size"] == SIZE
    assert export["is_read_only"] is True
    assert export["can_multi_conn"] is False
    assert export["can_df"] is False


@needs("nbdcopy")
@pytest.mark.parametrize("network", [Network(), Network(latency=0.001, bandwidth=200e6)], ids=["direct", "slow"])
async def test_nbdcopy_gets_every_byte(disks: Disks, tmp_path: Path, network: Network) -> None:
    content = scattered(disks, "d", SIZE)
    target = tmp_path / "copy"
    async with nbd_daemon(disks, tmp_path, network=network) as daemon:
        code, output = await run("nbdcopy", uri(daemon, "d"), str(target))
    assert code == 0, output
    assert target.read_bytes() == content


@needs("nbdcopy")
async def test_nbdcopy_gets_every_byte_in_tls(disks: Disks, tmp_path: Path) -> None:
    content = scattered(disks, "d", SIZE)
    (tmp_path / "ca").mkdir()
    target = tmp_path / "copy"
    async with nbd_daemon(disks, tmp_path, mode="tls") as daemon:
        pem = (tmp_path / "xapi-ssl.pem").read_text()
        (tmp_path / "ca/ca-cert.pem").write_text(pem[pem.index("-----BEGIN CERT") :])
        secure = uri(daemon, "d").replace("nbd://", "nbds://") + f"?tls-certificates={tmp_path}/ca"
        code, output = await run("nbdcopy", secure, str(target))
    assert code == 0, output
    assert target.read_bytes() == content


@needs("nbdinfo")
async def test_tls_cannot_be_done_without(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path, mode="tls") as daemon:
        code, output = await run("nbdinfo", uri(daemon, "d"))
    assert code != 0
    assert "TLS" in output, output


@needs("qemu-img")
async def test_qemu_insists_on_a_list_of_exports_and_gives_up(disks: Disks, tmp_path: Path) -> None:
    """Clients fall back to EXPORT_NAME where GO is unknown, but qemu wants to see the list first, which is refused."""
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path) as daemon:
        code, output = await run("qemu-img", "info", uri(daemon, "d"))
    assert code != 0
    assert "list" in output, output
