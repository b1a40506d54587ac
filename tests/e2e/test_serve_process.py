"""`mover serve` as a process: what it offers, to whom, what it says when something is wrong, and how it ends."""

import signal
import socket
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import nbd
import pytest

from mover.cli import main
from mover.store import Store
from protocol.extent import Extent
from protocol.nbd import Endpoint
from protocol.secret import Secret
from tests import fork_server
from tests.nbd_fixtures import Client, connected
from tests.serve_fixtures import MOVER, MiB, Served, patchy, serving, store_with
from tests.simulator_fixtures import in_thread
from tests.store_fixtures import back_up, files_of, noise

STOPPED = "stopping: cleaning up; once more to stop at once\ninterrupted; everything is left clean\n"
ROOT = noise("root", 6 * MiB + 512)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "store"
    store_with(path, [("root", ROOT), ("data", patchy()), ("root", bytes(MiB))]).close()
    return path


def refused(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `mover serve`, which is to fail."""
    return fork_server.run(
        [*MOVER, "serve", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def address(served: Served) -> tuple[str, int]:
    """Host and port."""
    host, _, port = str(served.disks[0]["uri"]).removeprefix("nbd://").partition("/")[0].partition(":")
    return host, int(port)


def ours(served: Served, export: str = "0") -> AbstractAsyncContextManager[Client]:
    """A connection of our own client."""
    host, port = address(served)
    return connected(Endpoint(host, port, Secret(export), None, host))


async def read(client: Client, extent: Extent) -> bytes:
    view = memoryview(bytearray(extent.length))
    await client.read(view, extent.offset)
    return bytes(view)


async def test_our_own_client_reads_it_over_two_connections_at_once(store: Path) -> None:
    async with serving(store, "latest") as served, ours(served) as one, ours(served) as other:
        for offset in range(0, len(ROOT), MiB):
            extent = Extent(offset, min(MiB, len(ROOT) - offset))
            expected = ROOT[offset : extent.end]
            assert await read(one, extent) == expected
            assert await read(other, extent) == expected


async def test_each_disk_has_its_position_its_name_and_the_first_is_the_default(store: Path) -> None:
    """The name "root" is two disks': the first one has it."""
    sizes = {"": len(ROOT), "0": len(ROOT), "1": len(patchy()), "2": MiB, "root": len(ROOT), "data": len(patchy())}
    async with serving(store, "latest") as served:
        assert [(disk["position"], disk["name"], disk["size"]) for disk in served.disks] == [
            ("0", "root", len(ROOT)), ("1", "data", len(patchy())), ("2", "root", MiB),
        ]  # fmt: skip
        for export, size in sizes.items():
            handle = await in_thread(opened, served, export)
            assert handle.get_size() == size, export
            handle.shutdown()
        with pytest.raises(nbd.Error, match="no export named '3'"):
            await in_thread(opened, served, "3")


async def test_only_the_disks_that_were_asked_for(store: Path) -> None:
    async with serving(store, "latest", "--disk", "data") as served:
        assert [disk["position"] for disk in served.disks] == ["1"]
        with pytest.raises(nbd.Error, match="no export named '0'"):
            await in_thread(opened, served, "0")
        handle = await in_thread(opened, served, "")
        assert await in_thread(handle.pread, 4096, 2 * MiB) == patchy()[2 * MiB : 2 * MiB + 4096]


def opened(served: Served, export: str, modern: bool = True) -> nbd.NBD:
    """A connection by libnbd; not `modern`: the way clients talked before GO and structured replies."""
    handle = nbd.NBD()
    handle.set_export_name(export)
    if not modern:
        handle.set_request_structured_replies(False)
        handle.set_handshake_flags(0)
    host, port = address(served)
    handle.connect_tcp(host, str(port))
    return handle


async def test_clients_from_before_structured_replies_read_the_same(store: Path) -> None:
    """As the Linux kernel does: it knows simple replies only."""
    async with serving(store, "latest") as served:
        handle = await in_thread(opened, served, "1", False)
        assert not handle.get_structured_replies_negotiated()
        got = b"".join(
            [await in_thread(handle.pread, min(MiB, len(patchy()) - at), at) for at in range(0, len(patchy()), MiB)]
        )
    assert got == patchy()


async def test_nothing_can_be_written_and_reading_goes_on(store: Path) -> None:
    async with serving(store, "latest") as served:
        handle = await in_thread(opened, served, "0")
        handle.set_strict_mode(0)  # let the server say no, not the library
        for attempt in (
            lambda: handle.pwrite(b"x" * 4096, 0),
            lambda: handle.trim(4096, 0),
            lambda: handle.zero(4096, 0),
            lambda: handle.pread(4096, len(ROOT)),
        ):
            with pytest.raises(nbd.Error):
                await in_thread(attempt)
        assert await in_thread(handle.pread, 4096, 0) == ROOT[:4096]


async def test_a_client_that_hangs_up_leaves_the_others_alone(store: Path) -> None:
    """In the middle of its handshake, of a request, and of an answer."""
    async with serving(store, "latest") as served:
        for words in (b"", b"\0\0\0\1", b"\0\0\0\3IHAVEOPT", b"rubbish that is no NBD at all"):
            with socket.create_connection(address(served)) as rude:
                rude.recv(18)
                rude.sendall(words)
        async with ours(served) as patient:
            async with ours(served):
                pass
            assert await read(patient, Extent(MiB, MiB)) == ROOT[MiB : 2 * MiB]
        with socket.create_connection(address(served)) as greedy:
            greedy.recv(18)
            greedy.sendall(b"\0\0\0\3IHAVEOPT" + (1).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"0")
            assert greedy.recv(10) == len(ROOT).to_bytes(8, "big") + b"\x01\x83"
            greedy.sendall(b"\x25\x60\x95\x13" + bytes(20) + (5 * MiB).to_bytes(4, "big"))
            assert greedy.recv(4) == b"\x67\x44\x66\x98"
        async with ours(served) as last:
            assert await read(last, Extent(0, 4096)) == ROOT[:4096]
        assert await served.stop() == 143
    assert served.said == [
        "stopping: cleaning up; once more to stop at once\n",
        "interrupted; everything is left clean\n",
    ]


async def test_damage_is_an_error_of_that_read_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store_with(path, [("root", ROOT)]).close()
    pack = max(files_of(path), key=lambda file: file.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(b"\xff" * 8)
    async with serving(path, "latest") as served:
        handle = await in_thread(opened, served, "0")
        whole = b"".join([await in_thread(lenient, handle, at) for at in range(0, len(ROOT), 65536)])
        line = await served.says("warning: ")
        assert "disk 0 (root): " in line
        assert f"{pack} is damaged at byte " in line
        assert await served.stop() == 143
    assert len([line for line in served.said if "damaged" in line]) == 1
    # A read is answered from a block of 2 MiB: that one is lost, the others are not.
    lost = [at for at in range(0, len(ROOT), 65536) if whole[at : at + 65536] != ROOT[at : at + 65536]]
    assert 0 < len(lost) <= 32


async def test_damage_behind_the_end_of_a_block_is_an_error_too(tmp_path: Path) -> None:
    """For clients that get one reply for the whole of a read: they keep their connection all the same."""
    path = tmp_path / "store"
    store_with(path, [("root", ROOT)]).close()
    pack = max(files_of(path), key=lambda file: file.stat().st_size)
    data = pack.read_bytes()
    at = data.index(ROOT[4 * MiB : 4 * MiB + 64])
    pack.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    async with serving(path, "latest") as served:
        for modern, flags in ((False, 0), (True, nbd.CMD_FLAG_DF)):
            handle = await in_thread(opened, served, "0", modern)
            assert await in_thread(handle.pread, MiB, 3 * MiB) == ROOT[3 * MiB : 4 * MiB]
            with pytest.raises(nbd.Error) as caught:
                await in_thread(handle.pread_structured, MiB, 4 * MiB - 65536, lambda *_: 0, flags)
            assert caught.value.errnum == 5
            assert await in_thread(handle.pread, MiB, 0) == ROOT[:MiB]


async def test_a_client_that_wants_one_piece_gets_one(store: Path) -> None:
    """Holes included, and over the end of a block."""
    async with serving(store, "latest") as served:
        handle = await in_thread(opened, served, "1")
        for flags in (0, nbd.CMD_FLAG_DF):
            pieces: list[tuple[int, int, int]] = []

            def piece(data: bytes, offset: int, status: int, error: object, pieces: list = pieces) -> int:
                pieces.append((offset, len(data), status))
                return 0

            got = await in_thread(handle.pread_structured, 4 * MiB, MiB, piece, flags)
            assert got == patchy()[MiB : 5 * MiB]
            if flags:
                assert pieces == [(MiB, 4 * MiB, nbd.READ_DATA)]
            else:
                assert {status for _, _, status in pieces} == {nbd.READ_DATA, nbd.READ_HOLE}


async def test_a_prune_may_move_what_is_being_served(tmp_path: Path) -> None:
    """The packs that were there at the first read are gone at the next one."""
    store = Store.create(str(tmp_path / "store"))
    old = back_up(store, ROOT[: 5 * MiB] + noise("gone", 9 * MiB), 1.0)
    kept = back_up(store, ROOT, 2.0)
    async with serving(tmp_path / "store", kept) as served:
        handle = await in_thread(opened, served, "0")
        assert await in_thread(handle.pread, 4096, 0) == ROOT[:4096]
        before = set(files_of(tmp_path / "store" / "packs"))
        assert store.forget([store.point(old)])
        report = await in_thread(store.prune)
        assert report.repacked > 0
        assert before - set(files_of(tmp_path / "store" / "packs"))
        whole = [await in_thread(handle.pread, min(MiB, len(ROOT) - at), at) for at in range(0, len(ROOT), MiB)]
    assert b"".join(whole) == ROOT
    store.close()


def lenient(handle: nbd.NBD, at: int) -> bytes:
    """A chunk, or zeros if it cannot be read."""
    length = min(65536, len(ROOT) - at)
    try:
        return bytes(handle.pread(length, at))
    except nbd.Error as error:
        assert error.errnum == 5, error
        return bytes(length)


async def test_more_clients_than_there_is_room_for_are_turned_away(store: Path) -> None:
    async with serving(store, "latest") as served:
        handles = [await in_thread(opened, served, "0") for _ in range(16)]
        with pytest.raises(nbd.Error):
            await in_thread(opened, served, "0")
        await served.says("a client was turned away: 16 connections are open already")
        assert await in_thread(handles[-1].pread, 4096, 0) == ROOT[:4096]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_while_clients_are_connected(
    store: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path = tmp_path / "nbd.sock"
    async with serving(store, "latest", "--socket", path) as served:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(8) == b"NBDMAGIC"
            assert await served.stop(number) == code
        assert not path.exists()
    assert served.said[-1] == "interrupted; everything is left clean\n"


def test_a_port_in_use(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = refused(store, "latest", "--port", port)
    assert done.returncode == 28
    assert done.stderr.splitlines() == [
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use",
        "hint: --port 0 takes any port that is free",
    ]


async def test_a_socket_of_a_living_process_is_left_alone_and_that_of_a_dead_one_replaced(
    store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(store, "latest", "--socket", path):
        done = await in_thread(refused, store, "latest", "--socket", path)
        assert done.returncode == 28
        assert done.stderr.startswith(f"error: cannot listen on {path}: Address already in use\nhint: ")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(8) == b"NBDMAGIC"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--disk", "nonesuch"], 21, "error: web has no disk nonesuch in point "),
        (["--port", "70000"], 2, "error: a port is a number from 0 to 65535, not 70000"),
        (["--socket", "s", "--address", "::1"], 2, "error: --address is for a port, not for --socket"),
        (["--socket", f"/{'x' * 200}"], 28, "error: cannot listen on /xxx"),
        (["--address", "192.0.2.1", "--insecure"], 28, "error: cannot listen on 192.0.2.1, port 10809: "),
    ],
)
def test_what_cannot_be_served(
    store: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(store), "latest", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err


def test_a_point_that_is_not_there(store: Path) -> None:
    done = refused(store, "nonesuch")
    assert (done.returncode, done.stdout) == (21, "")
    assert "hint: `mover list` shows what there is" in done.stderr


def test_people_are_told_the_address_of_each_disk(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with fork_server.Popen(
        [*MOVER, "serve", str(store), "latest", "--socket", str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip("\n").split("\t") for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    uri = f"socket={tmp_path}/a%20socket"
    assert lines == [
        [f"nbd+unix:///0?{uri}", "root", "6 MiB"],
        [f"nbd+unix:///1?{uri}", "data", "9 MiB"],
        [f"nbd+unix:///2?{uri}", "root", "1 MiB"],
    ]
