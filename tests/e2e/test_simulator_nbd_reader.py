"""Our own reader before the simulated NBD daemon, in the clear and in pinned TLS, on both event loops."""

import asyncio
from pathlib import Path

import pytest
import uvloop

from mover.simulator.certificate import host_certificate
from mover.simulator.faults import Faults, NbdFault
from mover.simulator.nbd import Mode, NbdDaemon
from mover.simulator.storage import Disks
from protocol.arena import Arena
from protocol.errors import NbdCertificateError, NbdConnectError
from protocol.extent import Extent
from protocol.nbd import Endpoint, Patience, Timeouts, open_reader
from protocol.secret import Secret
from tests.disks_fixtures import SESSION, KiB, MiB, nbd_daemon, scattered
from tests.nbd_fixtures import Sink, at, budget

SIZE = 24 * MiB + 64 * KiB
QUICK = Timeouts(connect=5, handshake=5, request=5)
HASTY = Patience(tries=4, first_pause=0.01, stall=0.2)


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "sr")


def endpoint(daemon: NbdDaemon, mode: Mode, folder: Path, session: str = SESSION) -> Endpoint:
    certificate = host_certificate(folder / "xapi-ssl.pem", "host", "127.0.0.1").pem if mode == "tls" else None
    return Endpoint("127.0.0.1", daemon.port, Secret(f"/d?session_id={session}"), certificate, "host")


async def read(disks: Disks, folder: Path, mode: Mode, faults: Faults, connections: int = 4) -> tuple[Sink, int]:
    """Read a disk; returns what came, compared, and how often anything had to be asked again."""
    content = scattered(disks, "d", SIZE)
    sink = Sink(lambda offset, length: content[offset : offset + length])
    async with nbd_daemon(disks, folder, mode, faults) as daemon:
        reading = open_reader(
            at(endpoint(daemon, mode, folder)),
            connections=connections,
            budget=budget(folder),
            timeouts=QUICK,
            patience=HASTY,
        )
        async with reading as reader:
            assert reader.size == SIZE
            stats = await reader.read([Extent(0, SIZE)], Arena(8, MiB), sink.take)
    return sink, stats.retried + stats.hedged


@pytest.mark.parametrize("mode", ["plain", "tls"])
async def test_a_disk_is_read(disks: Disks, tmp_path: Path, mode: Mode) -> None:
    sink, again = await read(disks, tmp_path, mode, Faults(), connections=1)
    sink.check([Extent(0, SIZE)])
    assert again == 0


@pytest.mark.parametrize("mode", ["plain", "tls"])
@pytest.mark.parametrize("kind", ["drop", "error", "stall"])
async def test_a_disk_is_read_in_spite_of(disks: Disks, tmp_path: Path, mode: Mode, kind: str) -> None:
    faults = Faults()
    faults.arm(NbdFault(kind, after=3 * MiB + 1000))  # type: ignore[arg-type]
    sink, again = await read(disks, tmp_path, mode, faults)
    sink.check([Extent(0, SIZE)])
    assert again > 0


async def test_a_changed_byte_is_seen_by_nobody_but_who_compares(disks: Disks, tmp_path: Path) -> None:
    """NBD has no checksums: this fault reaches the reader's user."""
    faults = Faults()
    faults.arm(NbdFault("corrupt", after=MiB + 3))
    sink, again = await read(disks, tmp_path, "tls", faults, connections=1)
    assert (len(sink.wrong), again) == (1, 0)


async def test_another_certificate_is_refused(disks: Disks, tmp_path: Path) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path, "tls") as daemon:
        imposter = endpoint(daemon, "tls", tmp_path / "sr")  # a certificate of the same name, made there
        with pytest.raises(NbdCertificateError):
            async with open_reader(at(imposter), budget=budget(tmp_path), timeouts=QUICK):
                pass


@pytest.mark.parametrize("mode", ["plain", "tls"])
async def test_a_session_nobody_knows_is_an_error_in_time(disks: Disks, tmp_path: Path, mode: Mode) -> None:
    disks.create("d", SIZE)
    async with nbd_daemon(disks, tmp_path, mode) as daemon:
        stranger = endpoint(daemon, mode, tmp_path, "OpaqueRef:other")
        with pytest.raises(NbdConnectError) as caught:
            async with open_reader(at(stranger), budget=budget(tmp_path), timeouts=QUICK, patience=HASTY):
                pass
        assert "OpaqueRef:other" not in str(caught.value)
