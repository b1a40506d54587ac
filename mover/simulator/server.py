"""The listening socket of one host, and its connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from mover.simulator.http import Connection, Routes, serve_connection

_BUFFER = 1 << 20


class HttpServer:
    """Serves `routes` on one address. Connections run in `group`, and end with `stop`; while `down` none is served."""

    def __init__(
        self,
        routes: Routes,
        group: asyncio.TaskGroup,
        head_timeout: float,
        down: Callable[[], bool] = lambda: False,
    ) -> None:
        self._routes = routes
        self._group = group
        self._head_timeout = head_timeout
        self._down = down
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, address: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listen; `port` 0 takes any."""
        self._server = await asyncio.start_server(self._accept, address, port, ssl=context, limit=_BUFFER, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down():
            writer.transport.abort()
            return
        task = self._group.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            await serve_connection(self._routes, connection, self._head_timeout)
        except asyncio.CancelledError:
            connection.abort()
            raise

    def cut(self) -> None:
        """Cut every connection; new ones are still accepted."""
        for task in self._connections:
            task.cancel()

    async def stop(self) -> None:
        """Accept no more and cut what is there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)
