"""Serve the disks of a restore point until cancelled."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mover.restore.choice import choose_disks
from mover.serve.blocks import Blocks
from mover.serve.export import Exports, ServedDisk, Warn
from mover.serve.listener import CONNECTIONS, Address, Service, listening, serve_clients
from mover.store import Point, PointDisk, Store

# Reads of the store at once, over all connections: where it is far away, they mostly wait.
_THREADS = 8

# Called once clients can connect, with the address and the disks in order; the first one is also the default export.
Ready = Callable[[Address, Sequence[PointDisk]], None]


async def serve_point(
    store: Store,
    point: Point,
    where: Address,
    *,
    disks: Sequence[str] = (),
    context: ssl.SSLContext | None = None,
    ready: Ready,
    warn: Warn,
) -> None:
    """Serve disks of `point` read-only over NBD. `disks` are positions, names or VDI UUIDs (empty: all). With
    `context` only over TLS.

    Nothing is read before a client asks for it. Raises `NotFoundError`, `AddressError`; a disk that cannot be read
    gives its clients I/O errors, and `warn` the reason.
    """
    served = [ServedDisk(disk, store.disk(disk.root, disk.size)) for disk in choose_disks(point, disks)]
    threads = max(_THREADS, store.readers)
    with listening(where) as (listener, there), ThreadPoolExecutor(threads, "serve") as executor:
        blocks = Blocks([disk.reader for disk in served], CONNECTIONS, executor)
        try:
            ready(there, [disk.about for disk in served])
            await serve_clients(listener, Service(Exports(served, blocks, warn), warn, context))
        finally:
            await blocks.close()
