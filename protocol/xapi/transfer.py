"""Bulk data to and from a pool's hosts over HTTP: disks and metadata."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

from protocol.errors import TransferError
from protocol.xapi.export import ExportStream
from protocol.xapi.http import HttpClient, open_http, read_page
from protocol.xapi.own_task import OwnTask, own_task
from protocol.xapi.session import Pool
from protocol.xapi.upload import Piece, Upload
from protocol.xapi.wire import failure_in_text

# Seconds without a byte: attaching a disk or reading zeros on a slow storage takes minutes, and the task is watched.
INACTIVITY = 30 * 60.0
# The metadata of a VM is tens of KB; its snapshots add as much each.
MAX_METADATA = 64 << 20

# The two blocks of zeros at the end of a tar. The server stops reading before them (xen-api ocaml/xapi/import.ml).
_TAR_END = 1024

_EXPORT = "/export_raw_vdi"
_IMPORT = "/import_raw_vdi"
_EXPORT_VM = "/export"
_IMPORT_VM = "/import"
_METADATA = "/export_metadata"

Compression = Literal["none", "gzip", "zstd"]


class Transfers:
    """Downloads and uploads with the session of `pool`, any number at once, each with a connection and a task."""

    def __init__(self, pool: Pool, http: HttpClient) -> None:
        self._pool = pool
        self._http = http

    @asynccontextmanager
    async def export_vdi(
        self, vdi: str, *, format: Literal["raw", "vhd"], base: str | None = None, length: int | None = None
    ) -> AsyncIterator[ExportStream]:
        """Download the VDI with the ref `vdi`; with `base`, the blocks in which it differs from that one.

        A raw disk has to be `length` bytes, by default its virtual size. What is read counts only after
        `ExportStream.finish`. Raises XapiError, TransferError, PoolCertificateError and what `Pool.call` raises.
        """
        query = {"vdi": vdi, "format": format}
        if base is not None:
            query["base"] = base
        if format == "raw" and length is None:
            length = int(await self._pool.call("VDI.get_virtual_size", vdi))
        async with self._download(_EXPORT, query, f"export of VDI {vdi}", length) as stream:
            yield stream

    @asynccontextmanager
    async def export_vm(self, ref: str, *, compression: Compression = "none") -> AsyncIterator[ExportStream]:
        """Download a halted VM or a snapshot with all its disks: an XVA, compressed by the host if asked for.

        What is read counts only after `ExportStream.finish`. Raises as `export_vdi` does.
        """
        query = {"ref": ref} | ({} if compression == "none" else {"use_compression": compression})
        async with self._download(_EXPORT_VM, query, f"export of VM {ref}", None) as stream:
            yield stream

    async def export_metadata(self, ref: str, *, snapshots: bool = False) -> bytes:
        """Download the metadata of a VM or snapshot: a tar with `ova.xml`. Raises as `export_vdi` does."""
        query = {"ref": ref, "export_snapshots": "true" if snapshots else "false"}
        what = f"export of metadata of {ref}"
        archive = bytearray()
        async with self._download(_METADATA, query, what, None) as stream:
            while piece := await stream.read(1 << 20):
                archive += piece
                if len(archive) > MAX_METADATA:
                    raise TransferError(what, f"larger than {MAX_METADATA} bytes")
            await stream.finish()
        return bytes(archive)

    async def import_vdi(
        self,
        vdi: str,
        *,
        format: Literal["raw", "vhd"],
        length: int,
        body: AsyncIterator[Piece],
        chunked: bool = False,
    ) -> None:
        """Upload exactly `length` bytes of `body` into the VDI with the ref `vdi`, and wait until they are in.

        `chunked` (raw only) is the server's own framing, see `wire.frame_head`; `length` is that of the framed
        stream. Nothing is taken from `body` before a host has accepted the request; whatever happens, nobody is
        inside `body` any more when this returns. Raises as `export_vdi` does, and what `body` raises.
        """
        if chunked and format != "raw":
            raise ValueError("only raw data can be framed")
        query = {"vdi": vdi, "format": format} | ({"chunked": "true"} if chunked else {})
        what = f"import into VDI {vdi}"
        async with own_task(self._pool, _IMPORT, what) as task:
            await self._upload(_IMPORT, query, task, what, length, body)
            await task.success()

    async def import_vm(
        self, *, sr: str, length: int, body: AsyncIterator[Piece], restore: bool = False, force: bool = False
    ) -> list[str]:
        """Upload an XVA of exactly `length` bytes, its disks into the SR with the ref `sr`; the refs of the VMs made.

        `restore` keeps UUIDs and MAC addresses. About `body`, and what is raised, see `import_vdi`.
        """
        query = {"sr_id": sr} | ({"restore": "true"} if restore else {}) | ({"force": "true"} if force else {})
        what = f"import of a VM into SR {sr}"
        async with own_task(self._pool, _IMPORT_VM, what) as task:
            await self._upload(_IMPORT_VM, query, task, what, length, body, unread=_TAR_END)
            result = await task.success()
        if not isinstance(result, list) or not all(isinstance(ref, str) for ref in result):
            raise TransferError(what, f"the server's answer names no VMs: {result!r}")
        return result

    async def _upload(
        self,
        path: str,
        query: Mapping[str, str],
        task: OwnTask,
        what: str,
        length: int,
        body: AsyncIterator[Piece],
        *,
        unread: int = 0,
    ) -> None:
        """Send `body`; the server may hang up before the last `unread` bytes if the task then succeeds."""
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._http.inactivity)
        upload = Upload(what, length, body, lambda: limit.reschedule(loop.time() + self._http.inactivity))
        try:
            async with limit, self._http.request("PUT", path, query, task.ref, what, upload) as response:
                task.adopted = True
                task.on_failure(response.content.set_exception)
                upload.on_error = response.content.set_exception
                upload.answered()
                page = await read_page(response)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TransferError(what, f"nothing moved for {self._http.inactivity:g} s") from None
        finally:
            await upload.settle()
        if upload.error is not None:
            raise upload.error
        if page:
            raise failure_in_text(page, task.call) or TransferError(what, "the server failed without saying why")
        if not upload.complete:
            lost = TransferError(what, f"the server hung up after {upload.sent} of {length} bytes")
            await task.success_after(lost)
            if upload.sent < length - unread:
                raise lost

    @asynccontextmanager
    async def _download(
        self, path: str, query: Mapping[str, str], what: str, length: int | None
    ) -> AsyncIterator[ExportStream]:
        async with (
            own_task(self._pool, path, what) as task,
            self._http.request("GET", path, query, task.ref, what) as response,
        ):
            task.adopted = True
            stream = ExportStream(response, self._http.inactivity, task, what, length)
            yield stream
            if not stream.ended:
                await stream.abandon()


@asynccontextmanager
async def open_transfers(pool: Pool, *, inactivity: float = INACTIVITY) -> AsyncIterator[Transfers]:
    """Make what downloads from and uploads to `pool`. `inactivity` in seconds is the longest silence."""
    async with open_http(pool, inactivity) as http:
        yield Transfers(pool, http)
