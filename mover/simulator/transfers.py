"""The HTTP handlers for bulk data, with their manners.

The head of the answer goes out before anything is read or attached, so success is what the task says. What fails after
that is written as a whole `500` response into the body. Nothing announces a length; the end is the close.

Source: xen-api ocaml/xapi/export_raw_vdi.ml, import_raw_vdi.ml, export.ml, xapi_http.ml.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple

from mover.simulator import vdi_stream
from mover.simulator.attachment import Attachments
from mover.simulator.failure import Failure, storage_failure
from mover.simulator.faults import HttpFault
from mover.simulator.http import Connection, HangUpError, Request, Routes, page, respond
from mover.simulator.ova import Wanted, export_metadata
from mover.simulator.pool import Host, Pool
from mover.simulator.storage import StorageError
from mover.simulator.values import NULL, Value
from mover.simulator.vdi import create_disk, refresh_disk
from mover.simulator.vdi_stream import StreamError
from protocol.vhd import MAX_SIZE

_TYPES = {"raw": "application/octet-stream", "vhd": "application/vhd"}
_IO_ERROR = Failure("VDI_IO_ERROR", "Device I/O errors")


class _Caller(NamedTuple):
    """In whose name: a session, and whether it was made for this request alone."""

    session: str
    temporary: bool


class TransferHandlers:
    """The handlers of one host."""

    def __init__(self, pool: Pool, host: Host, attachments: Attachments, ids: count[int]) -> None:
        self._pool = pool
        self._host = host
        self._attachments = attachments
        self._ids = ids

    def add_to(self, routes: Routes) -> None:
        """Serve them."""
        routes.add("GET", "/export_raw_vdi", self.authenticated(self._export_vdi))
        routes.add("PUT", "/import_raw_vdi", self.authenticated(self._import_vdi))
        routes.add("GET", "/export_metadata", self.authenticated(self._export_metadata))

    # -- who and where, for these handlers and those of whole VMs ------------------------------------------------------

    def authenticated(
        self, handler: Callable[[Request, Connection, str], Awaitable[None]]
    ) -> Callable[[Request, Connection], Awaitable[bool]]:
        async def handle(request: Request, connection: Connection) -> bool:
            caller = self._caller(request)
            if caller is None:
                realm = {"WWW-Authenticate": 'Basic realm="XenSource"'}
                await respond(connection, "401 Unauthorised", page("Authentication failed"), headers=realm)
                return False
            try:
                await handler(request, connection, caller.session)
            finally:
                if caller.temporary and self._pool.sessions.alive(caller.session):
                    self._pool.sessions.close(caller.session)
            return False

        return handle

    def _caller(self, request: Request) -> _Caller | None:
        """Cookie, then query, then basic authentication."""
        sessions = self._pool.sessions
        session = parameter(request, "session_id")
        if session is not None:
            return _Caller(session, False) if sessions.alive(session) else None
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return None
        if not sessions.authentic(username, password):
            return None
        return _Caller(sessions.open(username, "HTTP basic", self._host.ref), True)

    async def elsewhere(self, request: Request, connection: Connection, sr: str) -> bool:
        """Send the client to a host that sees the SR, if this one does not. The task is left alone."""
        seeing = self._pool.hosts_seeing(sr)
        if self._host in seeing:
            return False
        if not seeing:
            raise Failure("HOST_CANNOT_SEE_SR", self._host.ref, sr)
        scheme = "https" if self._pool.options.tls else "http"
        location = f"{scheme}://{seeing[0].authority()}{request.path}?{request.raw_query}"
        await respond(connection, "302 Found", headers={"Location": location})
        return True

    def adopt(self, request: Request, label: str, session: str) -> str:
        """The client's task, or one of our own."""
        task = parameter(request, "task_id")
        if task is not None and self._pool.database.exists("task", task):
            return task
        return self._pool.tasks.create(label, "", session, self._host.ref)

    # -- the handlers --------------------------------------------------------------------------------------------------

    async def _export_vdi(self, request: Request, connection: Connection, session: str) -> None:
        database = self._pool.database
        vdi = database.by_ref_or_uuid("VDI", parameter(request, "vdi") or "")
        if await self.elsewhere(request, connection, database.get("VDI", vdi)["SR"]):
            return
        task = self.adopt(request, "Export raw VDI", session)
        format = parameter(request, "format") or "raw"
        if format not in _TYPES:
            await self._unknown_format(connection, task, format)
            return
        uuid = database.get("VDI", vdi)["uuid"]
        name = f'attachment; filename="{uuid}.{format}"'
        await begin(connection, task, {"content-type": _TYPES[format], "content-disposition": name})

        async def send(fault: HttpFault | None) -> None:
            async with self._attachments.attached(vdi, task=task):
                if format == "raw":
                    await vdi_stream.export_raw(self._pool.disks, uuid, connection)
                else:
                    await vdi_stream.export_vhd(self._pool.disks, uuid, self._base(request), connection)

        await self.transfer(request, task, vdi, send, "", connection)

    def _base(self, request: Request) -> str | None:
        base = parameter(request, "base")
        if base is None:
            return None
        record = self._pool.database.get("VDI", self._pool.database.by_ref_or_uuid("VDI", base))
        if record["type"] == "cbt_metadata":
            raise Failure("VDI_INCOMPATIBLE_TYPE", base, "cbt_metadata")
        if record["sm_config"].get("image-format", "vhd") != "vhd":
            raise Failure("INTERNAL_ERROR", "base VDI is not a vhd")
        uuid: str = record["uuid"]
        return uuid

    async def _import_vdi(self, request: Request, connection: Connection, session: str) -> None:
        database = self._pool.database
        named = parameter(request, "vdi")
        sr = self.repository(request) if named is None else None
        vdi = database.by_ref_or_uuid("VDI", named or "") if sr is None else NULL
        if await self.elsewhere(request, connection, sr or database.get("VDI", vdi)["SR"]):
            return
        task = self.adopt(request, "Import raw VDI", session)
        encoding = request.headers.get("transfer-encoding")
        if encoding is not None:
            self._pool.tasks.fail(task, Failure("INTERNAL_ERROR", f"Cannot handle encoding: {encoding}"))
            await respond(connection, "404 Not Found", page("Not found"), version="HTTP/1.0")
            return
        format = parameter(request, "format") or "raw"
        framed = parameter(request, "chunked") is not None
        if format not in _TYPES or (framed and format != "raw"):
            await self._unknown_format(connection, task, format)
            return
        if sr is not None:
            if format != "raw" or request.content_length is None:
                await self._no_target(connection, task, format)
                return
            vdi = self._new_disk(sr, request.content_length)
        await begin(connection, task, {})
        uuid = database.get("VDI", vdi)["uuid"]
        # Without a length the trailing footer is looked for at the end of the device, and not found.
        length = request.content_length if request.content_length is not None else self._pool.disks.size(uuid)

        async def receive(fault: HttpFault | None) -> None:
            body = Body(connection, fault)
            async with self._attachments.attached(vdi, writable=True, task=task):
                if self._pool.faults.sr_full:
                    raise storage_failure(44, "There is insufficient space")
                if framed:
                    await vdi_stream.import_chunked(self._pool.disks, uuid, body)
                elif format == "raw":
                    await vdi_stream.import_raw(self._pool.disks, uuid, body, length)
                else:
                    await vdi_stream.import_vhd(self._pool.disks, uuid, body, length)

        await self.transfer(request, task, vdi, receive, vdi)
        refresh_disk(self._pool, vdi)

    def repository(self, request: Request) -> str | None:
        """Where a disk is to be made, if the request names a repository instead of a disk."""
        database = self._pool.database
        named = parameter(request, "sr_id") or parameter(request, "sr_uuid")
        return None if named is None else database.by_ref_or_uuid("SR", named)

    def _new_disk(self, sr: str, length: int) -> str:
        fields = {
            "SR": sr,
            "name_label": "Imported VDI",
            "virtual_size": length,
            "type": "user",
            "sharable": False,
            "read_only": False,
            "other_config": {},
        }
        return create_disk(self._pool, fields)

    async def _no_target(self, connection: Connection, task: str, format: str) -> None:
        reason = f"Importing a {format.upper()} directly into an SR not yet supported"
        self._pool.tasks.fail(task, Failure("INTERNAL_ERROR", reason))
        await respond(connection, "400 Bad Request", page("Bad request"), version="HTTP/1.0")

    async def _export_metadata(self, request: Request, connection: Connection, session: str) -> None:
        task, wanted = self._adopt_metadata(request, session)
        snapshots = [vm for vm in wanted.vms if self._pool.database.get("VM", vm)["is_a_snapshot"]]
        if snapshots and not self._pool.options.release.snapshot_metadata:
            failure = Failure("OPERATION_NOT_ALLOWED", "Exporting metadata of a snapshot is not allowed")
            self._pool.tasks.fail(task, failure)
            raise failure
        archive = export_metadata(self._pool.database, wanted, self._ids)
        headers = {"task-id": task, "content-disposition": 'attachment; filename="export.xva"'}
        await respond(
            connection, "200 OK", archive, version="HTTP/1.0", headers=headers, content_type="application/octet-stream"
        )
        self._pool.tasks.succeed(task)

    def _adopt_metadata(self, request: Request, session: str) -> tuple[str, Wanted]:
        database = self._pool.database
        if parameter(request, "all") == "true":
            dom0 = parameter(request, "include_dom0") != "false"
            vms = [
                ref
                for ref, record in database.items("VM")
                if not record["is_a_snapshot"] and (dom0 or not record["is_control_domain"])
            ]
        else:
            vms = [database.by_ref_or_uuid("VM", parameter(request, "ref") or parameter(request, "uuid") or "")]
        without = frozenset((parameter(request, "excluded_device_types") or "").split(","))
        snapshots = parameter(request, "export_snapshots") != "false"
        return self.adopt(request, "Export metadata", session), Wanted(vms, snapshots, without)

    async def _unknown_format(self, connection: Connection, task: str, format: str) -> None:
        self._pool.tasks.fail(task, Failure("INTERNAL_ERROR", f"Unknown format {format}"))
        await respond(connection, "404 Not Found", page("Not found"), version="HTTP/1.0")

    # -- how it ends ---------------------------------------------------------------------------------------------------

    async def transfer(
        self,
        request: Request,
        task: str,
        vdi: str,
        work: Callable[[HttpFault | None], Awaitable[object]],
        result: Value | None,
        answer: Connection | None = None,
    ) -> None:
        """Do the work and complete the task; a failure is raised once more, to be written into the body.

        With `result` None, what the work returns is the task's. What the work writes to `answer` goes wrong as a fault
        says.
        """
        fault = self._pool.faults.take_http(request.path.strip("/"))
        if answer is not None and fault is not None:
            answer.tap = Tap(answer, fault).pass_on
        try:
            done = await work(fault)
        except Failure as failure:
            self._pool.tasks.fail(task, failure)
            raise
        except StreamError as error:
            raise self._failed(
                task, Failure(error.code, vdi, str(MAX_SIZE)) if error.code == "VDI_TOO_LARGE" else _IO_ERROR
            ) from None
        except StorageError as error:
            raise self._failed(task, storage_failure(error.code, error.message)) from None
        except HangUpError:
            self._pool.tasks.fail(task, _IO_ERROR)
            raise
        finally:
            if answer is not None:
                answer.tap = None
        if fault is not None and fault.kind == "task":
            self._pool.tasks.fail(task, Failure(fault.code, *fault.params))
        else:
            self._pool.tasks.succeed(task, done if result is None else result)

    def _failed(self, task: str, failure: Failure) -> Failure:
        self._pool.tasks.fail(task, failure)
        return failure


class Tap:
    """Lets the first bytes of a body through, then goes wrong."""

    def __init__(self, connection: Connection, fault: HttpFault) -> None:
        self._connection = connection
        self._fault = fault
        self._start = connection.sent

    async def pass_on(self, sent: int, data: bytes) -> bytes:
        """See `Connection.tap`."""
        room = self._fault.after - (sent - self._start)
        if self._fault.kind == "task" or len(data) <= room:
            return data
        self._connection.tap = None
        if self._fault.kind == "corrupt":
            at = max(room, 0)
            return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        if room > 0:
            await self._connection.write(data[:room])
        if self._fault.kind == "close":
            await self._connection.flush()
            self._connection.abort()
            raise HangUpError("cut on request")
        raise Failure(self._fault.code, *self._fault.params)


class Body:
    """The body of an upload, until it goes wrong."""

    def __init__(self, connection: Connection, fault: HttpFault | None) -> None:
        self._connection = connection
        self._fault = fault
        self._read = 0

    async def read(self, n: int) -> bytes:
        """At most n bytes."""
        self._check()
        data = await self._connection.read(n)
        self._read += len(data)
        return data

    async def readexactly(self, n: int) -> bytes:
        """Exactly n bytes, or asyncio.IncompleteReadError."""
        self._check()
        data = await self._connection.readexactly(n)
        self._read += len(data)
        return data

    def _check(self) -> None:
        fault = self._fault
        if fault is None or fault.kind in ("task", "corrupt") or self._read < fault.after:
            return
        if fault.kind == "close":
            self._connection.abort()
            raise HangUpError("cut on request")
        raise Failure(fault.code, *fault.params)


async def begin(connection: Connection, task: str, headers: dict[str, str], version: str = "HTTP/1.1") -> None:
    """The head of an answer whose end is the close."""
    fields = {"task-id": task, "connection": "close", "cache-control": "no-cache, no-store"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    await connection.write(f"{version} 200 OK\r\n{lines}\r\n".encode("latin-1"))


def parameter(request: Request, name: str) -> str | None:
    """Cookies come before the query."""
    return request.cookies.get(name) or request.query.get(name)
