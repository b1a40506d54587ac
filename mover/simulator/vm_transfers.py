"""The HTTP handlers for whole VMs: /export and /import.

Source: xen-api ocaml/xapi/export.ml, import.ml, importexport.ml.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count

from mover.simulator.attachment import Attachments
from mover.simulator.failure import Failure
from mover.simulator.faults import HttpFault
from mover.simulator.http import Connection, Request, Routes, page, respond
from mover.simulator.ova import Wanted, ova_xml, short_names
from mover.simulator.pool import Host, Pool
from mover.simulator.transfers import Body, TransferHandlers, begin, parameter
from mover.simulator.values import NULL, Record
from mover.simulator.vm_import import VmImport
from mover.simulator.xva_export import XvaExport
from mover.simulator.xva_stream import DiskStream, TarStream, read_ova

_HALTED: Record = {"power_state": "Halted", "suspend_VDI": NULL}


class VmTransferHandlers:
    """The handlers of one host. What they share with those for disks is in `transfers`."""

    def __init__(
        self, pool: Pool, host: Host, attachments: Attachments, ids: count[int], transfers: TransferHandlers
    ) -> None:
        self._pool = pool
        self._host = host
        self._attachments = attachments
        self._ids = ids
        self._transfers = transfers

    def add_to(self, routes: Routes) -> None:
        """Serve them."""
        routes.add("GET", "/export", self._transfers.authenticated(self._export))
        routes.add("PUT", "/import", self._transfers.authenticated(self._import))
        routes.add("PUT", "/import_metadata", self._transfers.authenticated(self._import_metadata))

    # -- out -----------------------------------------------------------------------------------------------------------

    async def _export(self, request: Request, connection: Connection, session: str) -> None:
        pool = self._pool
        vm = pool.database.by_ref_or_uuid("VM", parameter(request, "ref") or parameter(request, "uuid") or "")
        disks = self._disks(vm)
        for sr in dict.fromkeys(pool.database.get("VDI", vdi)["SR"] for vdi in disks):
            if await self._transfers.elsewhere(request, connection, sr):
                return
        task = self._transfers.adopt(request, "Export of VM", session)
        state = pool.database.get("VM", vm)["power_state"]
        if state not in ("Halted", "Suspended"):
            failure = Failure("VM_BAD_POWER_STATE", vm, "halted, suspended", state.lower())
            pool.tasks.fail(task, failure)
            raise failure
        headers = {
            "content-type": "application/octet-stream",
            "content-disposition": 'attachment; filename="export.xva"',
        }
        await begin(connection, task, headers, version="HTTP/1.0")

        async def send(fault: HttpFault | None) -> None:
            wanted = Wanted([vm])
            names = short_names(pool.database, wanted, self._ids)
            kept = parameter(request, "preserve_power_state") == "true"
            export = XvaExport(
                connection.write,
                parameter(request, "use_compression"),
                pool.options.release.xva_checksum,
                keep_alive=pool.options.xva_keep_alive,
            )
            await export.begin(ova_xml(pool.database, wanted, names, {} if kept else _HALTED))
            for vdi in sorted(disks, key=lambda ref: names[ref]):
                async with self._attachments.attached(vdi, task=task):
                    await export.disk(pool.disks, pool.database.get("VDI", vdi)["uuid"], names[vdi])
            await export.end()

        await self._transfers.transfer(request, task, NULL, send, "", connection)

    def _disks(self, vm: str) -> Sequence[str]:
        """The VDIs of drives that are no CD drives, of SRs that hold no ISO files."""
        database = self._pool.database
        vbds = [database.get("VBD", vbd) for vbd in database.get("VM", vm)["VBDs"]]
        vdis = [vbd["VDI"] for vbd in vbds if vbd["type"] != "CD" and database.exists("VDI", vbd["VDI"])]
        of = {vdi: database.get("SR", database.get("VDI", vdi)["SR"]) for vdi in vdis}
        return [vdi for vdi in vdis if of[vdi]["content_type"] != "iso"]

    # -- in ------------------------------------------------------------------------------------------------------------

    async def _import(self, request: Request, connection: Connection, session: str) -> None:
        pool = self._pool
        sr = self._transfers.repository(request) or self._default_sr()
        if await self._transfers.elsewhere(request, connection, sr):
            return
        task = self._transfers.adopt(request, "VM import", session)
        if request.headers.get("transfer-encoding") is not None:
            pool.tasks.fail(task, Failure("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"))
            await respond(connection, "403 Forbidden", page("Forbidden"), version="HTTP/1.0")
            return
        await begin(connection, task, {})
        force = parameter(request, "force") == "true"
        restore = parameter(request, "restore") == "true"

        async def receive(fault: HttpFault | None) -> list[str]:
            tar = TarStream(Body(connection, fault).read, request.content_length)
            work = VmImport(pool, sr, task, restore=restore, force=force)
            work.describe(await read_ova(tar))
            try:
                work.create()
                disks = DiskStream(tar, inline=work.inline_checksums, force=force)
                for name, vdi in work.disks():
                    record = pool.database.get("VDI", vdi)
                    async with self._attachments.attached(vdi, writable=True, task=task):
                        await disks.receive(name, work.sizes[name], partial(pool.disks.write, record["uuid"]))
                if fault is not None and fault.kind == "task":
                    raise Failure(fault.code, *fault.params)
            except BaseException:
                if not force:
                    work.undo()
                raise
            return work.finish()

        await self._transfers.transfer(request, task, NULL, receive, None)

    async def _import_metadata(self, request: Request, connection: Connection, session: str) -> None:
        """The VM without its disks, which have to be there."""
        task = self._transfers.adopt(request, "VM metadata import", session)
        await begin(connection, task, {})

        async def receive(fault: HttpFault | None) -> list[str]:
            work = VmImport(
                self._pool,
                NULL,
                task,
                restore=parameter(request, "restore") == "true",
                force=parameter(request, "force") == "true",
                disks={name[4:]: new for name, new in request.query.items() if name.startswith("vdi:")},
            )
            tar = TarStream(Body(connection, fault).read, request.content_length)
            work.describe(await read_ova(tar))
            try:
                work.create()
            except BaseException:
                work.undo()
                raise
            if parameter(request, "dry_run") == "true":
                work.undo()
                return []
            return work.finish()

        await self._transfers.transfer(request, task, NULL, receive, None)

    def _default_sr(self) -> str:
        database = self._pool.database
        sr: str = next(record["default_SR"] for _, record in database.items("pool"))
        if not database.exists("SR", sr):
            raise Failure("DEFAULT_SR_NOT_FOUND", sr)
        return sr
