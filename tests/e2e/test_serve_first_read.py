"""How much of a store is read before the first byte of a disk is there: it does not grow with the disk."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mover.serve.listener import Address, TcpAddress
from mover.serve.point import serve_point
from mover.store import PointDisk, Store
from mover.store.directory import DirectoryBackend
from protocol.nbd import Endpoint
from protocol.secret import Secret
from tests.nbd_fixtures import Client, connected
from tests.simulator_fixtures import in_thread
from tests.store_fixtures import CHUNK, noise, point_of

GiB = 1 << 30
TiB = 1 << 40
WORDS = noise("what is on the disk")


class Counted:
    """A back end that notes what is asked of it: (method, key) of each call."""

    def __init__(self, path: Path) -> None:
        self._inner = DirectoryBackend(str(path))
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, str(arguments[0]) if arguments else ""))
            return found(*arguments, **options)

        return call


def store_of(path: Path, size: int, chunks: Iterable[int]) -> Path:
    """A store with one disk that has data in these chunks, the same in all of them."""
    with Store.create(str(path)).writer() as writer:
        id = writer.seal(memoryview(WORDS)).ids
        tree = writer.tree(size)
        for first in chunks:
            tree.put(first, id)
            tree.advance(first)
        writer.commit(point_of(tree.finish(), size))
    return path


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[tuple[Counted, Client]]:
    """Open the store, serve its point, connect."""
    backend = Counted(path)
    ready: asyncio.Future[Address] = asyncio.get_running_loop().create_future()

    def on_ready(where: Address, disks: Sequence[PointDisk]) -> None:
        ready.set_result(where)

    def warn(message: str) -> None:
        raise AssertionError(message)

    store: Store = await in_thread(Store.open, backend)
    point = store.point("latest")
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(serve_point(store, point, TcpAddress("127.0.0.1", 0), ready=on_ready, warn=warn))
        where = await ready
        assert isinstance(where, TcpAddress)
        endpoint = Endpoint(where.host, where.port, Secret(""), None, where.host)
        async with connected(endpoint) as client:
            yield backend, client
        serving.cancel()


# Length, chunks with data, and pages from the root of the tree down to a leaf, each of which has 128 ids.
SIZES = {
    "64 KiB": (CHUNK, range(1), 1),
    "1 GiB": (GiB, range(0, GiB // CHUNK, 2), 2),
    "1 TiB": (TiB, range(0, TiB // CHUNK, 997), 4),
    "63 TiB": (63 * TiB, range(0, 63 * TiB // CHUNK, 1 << 16), 5),
}


@pytest.mark.parametrize("size", SIZES)
async def test_the_first_read_takes_a_handful_of_reads_whatever_the_size(tmp_path: Path, size: str) -> None:
    length, chunks, levels = SIZES[size]
    path = await in_thread(store_of, tmp_path / "store", length, chunks)
    async with served(path) as (backend, client):
        opening = list(backend.calls)
        view = memoryview(bytearray(4096))
        await client.read(view, 0)
        first = backend.calls[len(opening) :]
        assert view == WORDS[:4096]
    # store.json, the list of points, the point: nothing of the index, of a tree or of a pack before a client asks.
    assert [call for call, _ in opening] == ["get", "list", "get"]
    # A store that cannot be written will do.
    assert not {call for call, _ in backend.calls} & {"create", "put", "delete", "tidy"}
    reads = [key for call, key in first if call == "read_into"]
    # One page of each level of the tree, of which 4 PiB need five, and the chunks of one block, which lie together.
    assert len(reads) == levels + 1, first
    # The index: its list, its segments, the packs there are.
    assert len(first) - len(reads) <= 6, first
