"""Our NBD server with modern manners before clients that are not ours: nbdinfo, nbdcopy, qemu-img."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from mover.simulator.certificate import host_certificate
from protocol.nbd.server import Export, Manners, MemoryRun, RefusedError, Run, SocketChannel, ZeroRun, serve
from tests.disks_fixtures import MiB, needs, run

SIZE = 6 * MiB + 512
HOLES = [(MiB, 2 * MiB), (4 * MiB, 6 * MiB)]


class Content:
    """Bytes in memory with holes."""

    def __init__(self) -> None:
        self.data = memoryview(bytes(n % 251 + 1 for n in range(251)) * (SIZE // 251 + 1))[:SIZE].tobytes()
        for start, end in HOLES:
            self.data = self.data[:start] + bytes(end - start) + self.data[end:]
        self.size = SIZE

    def _pieces(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]:
        edges = sorted({offset, offset + length, *(edge for hole in HOLES for edge in hole)})
        for start, end in pairwise(edges):
            if offset <= start and end <= offset + length:
                yield start, end, any(low <= start < high for low, high in HOLES)

    async def runs(self, offset: int, length: int) -> Iterable[Run]:
        view = memoryview(self.data)
        return [
            ZeroRun(end - start) if hole else MemoryRun(view[start:end])
            for start, end, hole in self._pieces(offset, length)
        ]

    async def allocation(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return [(end - start, hole) for start, end, hole in self._pieces(offset, length)]


@asynccontextmanager
async def server(content: Content, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve one export named `disk`; yields the port."""

    @asynccontextmanager
    async def open_export(name: str) -> AsyncIterator[Export]:
        if name != "disk":
            raise RefusedError("no such export")
        yield content

    async def one(connection: socket.socket) -> None:
        channel = SocketChannel(connection)
        try:
            await serve(channel, Manners("forced" if context else "none"), open_export, context)
        except OSError:
            pass
        finally:
            channel.close()

    async def accept(listener: socket.socket, group: asyncio.TaskGroup) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            group.create_task(one(connection))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(accept(listener, group))
            try:
                yield listener.getsockname()[1]
            finally:
                accepting.cancel()


@needs("nbdinfo")
async def test_nbdinfo_sees_structured_replies_and_several_connections() -> None:
    async with server(Content()) as port:
        code, output = await run("nbdinfo", "--json", f"nbd://127.0.0.1:{port}/disk")
    assert code == 0, output
    said = json.loads(output[output.index("{") :])
    assert said["structured"] is True
    (export,) = said["exports"]
    assert export["export-size"] == SIZE
    assert export["is_read_only"] is True
    assert export["can_multi_conn"] is True
    assert export["can_df"] is True
    assert export["contexts"] == ["base:allocation"]


@needs("nbdinfo")
async def test_nbdinfo_maps_the_holes() -> None:
    async with server(Content()) as port:
        code, output = await run("nbdinfo", "--map", "--json", f"nbd://127.0.0.1:{port}/disk")
    assert code == 0, output
    found = json.loads(output[output.index("[") :])
    assert [(item["offset"], item["length"], item["type"]) for item in found] == [
        (0, MiB, 0), (MiB, MiB, 3), (2 * MiB, 2 * MiB, 0), (4 * MiB, 2 * MiB, 3), (6 * MiB, 512, 0),
    ]  # fmt: skip


@needs("nbdinfo")
async def test_another_name_is_refused_with_a_reason() -> None:
    async with server(Content()) as port:
        code, output = await run("nbdinfo", f"nbd://127.0.0.1:{port}/other")
    assert code != 0
    assert "No such file or directory for export: other" in output, output


@needs("nbdcopy")
@pytest.mark.parametrize("options", [[], ["--no-extents"], ["--synchronous"], ["--connections=4"]], ids=str)
async def test_nbdcopy_gets_every_byte(tmp_path: Path, options: list[str]) -> None:
    content = Content()
    async with server(content) as port:
        code, output = await run("nbdcopy", *options, f"nbd://127.0.0.1:{port}/disk", str(tmp_path / "copy"))
    assert code == 0, output
    assert (tmp_path / "copy").read_bytes() == content.data


@needs("qemu-img")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_qemu_img_compares_equal(tmp_path: Path, secure: bool) -> None:
    content = Content()
    (tmp_path / "raw").write_bytes(content.data)
    certificate = host_certificate(tmp_path / "ssl.pem", "host", "127.0.0.1")
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/ca-cert.pem").write_text(certificate.pem)
    async with server(content, certificate.context() if secure else None) as port:
        export = (
            f"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,"
            f"file.server.port={port},file.export=disk" + (",file.tls-creds=tls" if secure else "")
        )
        tls = ["--object", f"tls-creds-x509,id=tls,dir={tmp_path}/ca,endpoint=client"] if secure else []
        code, output = await run(
            "qemu-img", "compare", *tls, "--image-opts", f"driver=raw,file.filename={tmp_path}/raw", export
        )
    assert code == 0, output
    assert "identical" in output
