"""The endpoints for calls: XML-RPC anywhere, JSON-RPC at /jsonrpc.

Source: xen-api ocaml/xapi/api_server.ml, ocaml/xapi-consts/constants.ml (largest body).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mover.simulator import jsonrpc, xmlrpc
from mover.simulator.dispatch import Caller, Dispatcher
from mover.simulator.failure import Failure
from mover.simulator.http import Connection, Request, Routes, page, respond, respond_error

BODY_LIMIT = 300 * 1024
_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "X-Requested-With"}


class RpcEndpoints:
    """Takes calls at one host. `early` is an error that strikes before a call is even looked at, if there is one."""

    def __init__(
        self, dispatcher: Dispatcher, caller: Callable[[], Caller], early: Callable[[], Failure | None]
    ) -> None:
        self._dispatcher = dispatcher
        self._caller = caller
        self._early = early

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", "/", self._with_body(self._xml, "text/xml"))
        routes.add("POST", "/jsonrpc", self._with_body(self._json, "application/json"))
        for path in ("/", "/jsonrpc"):
            routes.add("OPTIONS", path, self._options)
        routes.add("GET", "/", _no_file)

    def _with_body(
        self, answer: Callable[[bytes], Awaitable[bytes]], content_type: str
    ) -> Callable[[Request, Connection], Awaitable[bool]]:
        async def handle(request: Request, connection: Connection) -> bool:
            length = request.content_length
            if length is None or length > BODY_LIMIT:
                await respond_error(connection, "INTERNAL_ERROR: [ Http_svr.Client_requested_size_over_limit; ]")
                return False
            try:
                reply = await answer(await connection.readexactly(length))
            except xmlrpc.MalformedCallError as error:
                await respond_error(connection, f"INTERNAL_ERROR: [ {error}; ]")
                return False
            await respond(
                connection,
                "200 OK",
                reply,
                version=request.version if request.version == "HTTP/1.0" else "HTTP/1.1",
                headers=_CORS,
                keep_alive=request.keep_alive,
                content_type=content_type,
            )
            return request.keep_alive

        return handle

    async def _xml(self, body: bytes) -> bytes:
        name, params = xmlrpc.decode_call(body)
        if name == "system.listMethods":
            return xmlrpc.encode_bare(self._dispatcher.list_methods())
        try:
            self._raise_early()
            return xmlrpc.encode_result(await self._dispatcher.call(self._caller(), name, params))
        except Failure as failure:
            return xmlrpc.encode_failure(failure.description)

    async def _json(self, body: bytes) -> bytes:
        request = jsonrpc.decode_call(body)
        try:
            self._raise_early()
        except Failure as failure:
            return jsonrpc.encode_early_failure(failure.description)
        if request.name == "system.listMethods":
            return jsonrpc.encode_result(request, self._dispatcher.list_methods())
        try:
            return jsonrpc.encode_result(
                request, await self._dispatcher.call(self._caller(), request.name, request.params)
            )
        except Failure as failure:
            return jsonrpc.encode_failure(request, failure.description)

    def _raise_early(self) -> None:
        failure = self._early()
        if failure:
            raise failure

    async def _options(self, request: Request, connection: Connection) -> bool:
        await respond(connection, "200 OK", headers=_CORS, keep_alive=request.keep_alive)
        return request.keep_alive


async def _no_file(request: Request, connection: Connection) -> bool:
    """Where the servers offer files to browsers."""
    await respond(connection, "404 Not Found", page("File not found"), keep_alive=request.keep_alive)
    return request.keep_alive
