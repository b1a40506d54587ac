"""A client that does not say what it wants loses its place; one that has said it may take its time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mover.serve.blocks import Blocks
from mover.serve.export import Exports, ServedDisk
from mover.serve.listener import Service, TcpAddress, listening, serve_clients
from mover.store import Store
from tests.store_fixtures import back_up, noise

DATA = noise("patience", 100_000)
OPTION = b"IHAVEOPT"


async def test_who_does_not_name_an_export_in_time_is_shown_the_door(tmp_path):
    store = Store.create(str(tmp_path / "store"))
    (disk,) = store.point(back_up(store, DATA)).record.disks
    reader = store.disk(disk.root, disk.size)
    with listening(TcpAddress("127.0.0.1", 0)) as (listener, where), ThreadPoolExecutor(2) as executor:
        assert isinstance(where, TcpAddress)
        blocks = Blocks([reader], 16, executor)
        service = Service(Exports([ServedDisk(disk, reader)], blocks, print), print, patience=2.0)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve_clients(listener, service))
            early, early_writer = await asyncio.open_connection(where.host, where.port)
            early_writer.write(b"\0\0\0\3" + OPTION + b"\0\0\0\1\0\0\0\0")
            greeting = await early.readexactly(18 + 10)
            assert int.from_bytes(greeting[18:26], "big") == len(DATA)
            silent = [await asyncio.open_connection(where.host, where.port) for _ in range(15)]
            async with asyncio.timeout(60):
                for reading, writer in silent:
                    assert len(await reading.read()) == 18  # the greeting, and then the end
                    writer.close()
            early_writer.write(b"\x25\x60\x95\x13" + bytes(20) + (4096).to_bytes(4, "big"))
            assert (await early.readexactly(16 + 4096))[16:] == DATA[:4096]
            early_writer.close()
            serving.cancel()
        await blocks.close()
    store.close()
