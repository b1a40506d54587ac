"""Changed block tracking, and where a disk can be read over NBD.

Source: xen-api ocaml/xapi/xapi_vdi.ml; sm libs/sm/VDI.py.
"""

from __future__ import annotations

import asyncio
import base64

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Host, Pool
from mover.simulator.signature import call
from mover.simulator.sr import require_feature
from mover.simulator.values import Record, Value
from mover.simulator.vdi import METADATA, refresh_disk, refuse_metadata, storage

_CAPABILITY = "VDI_CONFIG_CBT"
_PURPOSES = frozenset({"nbd", "insecure_nbd"})
_NO_CONTENT = "/No content: this is a cbt_metadata VDI/"


class CbtCalls:
    """The calls that came with API 2.8."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "VDI.enable_cbt(self: VDI ref) -> void",
        errors="SR_OPERATION_NOT_SUPPORTED OPERATION_NOT_ALLOWED VDI_INCOMPATIBLE_TYPE LICENCE_RESTRICTION"
        " VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
    )
    async def enable_cbt(self, context: Context, vdi: str) -> None:
        """Nothing happens if it is on already, but the checks come first."""
        async with self._pool.busy.hold(context, "VDI", vdi, "enable_cbt"):
            self._check_licence()
            record = self._check(vdi)
            if not record["cbt_enabled"]:
                storage(lambda: self._pool.disks.enable_cbt(record["uuid"]))
                refresh_disk(self._pool, vdi)

    @call(
        "VDI.disable_cbt(self: VDI ref) -> void",
        errors="SR_OPERATION_NOT_SUPPORTED OPERATION_NOT_ALLOWED VDI_INCOMPATIBLE_TYPE"
        " VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
    )
    async def disable_cbt(self, context: Context, vdi: str) -> None:
        async with self._pool.busy.hold(context, "VDI", vdi, "disable_cbt"):
            record = self._check(vdi)
            if record["cbt_enabled"]:
                storage(lambda: self._pool.disks.disable_cbt(record["uuid"]))
                refresh_disk(self._pool, vdi)

    @call(
        "VDI.list_changed_blocks(vdi_from: VDI ref, vdi_to: VDI ref) -> string",
        errors="SR_OPERATION_NOT_SUPPORTED VDI_IN_USE",
    )
    async def list_changed_blocks(self, context: Context, vdi_from: str, vdi_to: str) -> str:
        """The older first. All checks are on the newer one; disks of snapshot VMs do not count as in use."""
        pool = self._pool
        older, newer = pool.database.get("VDI", vdi_from), pool.database.get("VDI", vdi_to)
        require_feature(pool, newer, _CAPABILITY)
        async with pool.busy.hold(context, "VDI", vdi_to, "list_changed_blocks"):
            for vbd in pool.attached(vdi_to):
                if not pool.database.get("VM", vbd["VM"])["is_a_snapshot"]:
                    raise Failure("VDI_IN_USE", vdi_to, "list_changed_blocks")
            if older["SR"] != newer["SR"]:
                raise Failure("INTERNAL_ERROR", "the VDIs are in different SRs")
            bitmap = storage(lambda: pool.disks.changed_blocks(older["uuid"], newer["uuid"]))
            if fault := pool.faults.take_cbt():
                bitmap = _forgetful(bitmap, fault.missing)
            return base64.b64encode(bitmap).decode()

    @call(
        "VDI.data_destroy(self: VDI ref) -> void",
        errors="SR_OPERATION_NOT_SUPPORTED OPERATION_NOT_ALLOWED VDI_NO_CBT_METADATA VDI_IN_USE",
    )
    async def data_destroy(self, context: Context, vdi: str) -> None:
        """Keep the log of a snapshot and drop its data, once every VBD is gone; that is waited for 4 seconds."""
        pool = self._pool
        async with pool.busy.hold(context, "VDI", vdi, "data_destroy"):
            record = pool.database.get("VDI", vdi)
            require_feature(pool, record, _CAPABILITY)
            if not record["is_a_snapshot"]:
                raise Failure("OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {vdi}")
            if record["type"] == METADATA:
                return
            if not record["cbt_enabled"]:
                raise Failure("VDI_NO_CBT_METADATA", vdi)
            await self._wait_until_unlinked(vdi)
            storage(lambda: pool.disks.data_destroy(record["uuid"]))
            other_config = {**record["other_config"], "content_id": _NO_CONTENT}
            sm_config = {key: value for key, value in record["sm_config"].items() if key != "vhd-parent"}
            pool.database.update("VDI", vdi, type=METADATA, other_config=other_config, sm_config=sm_config)
            refresh_disk(pool, vdi)

    @call(
        "VDI.get_nbd_info(self: VDI ref) -> vdi_nbd_server_info record set",
        errors="VDI_INCOMPATIBLE_TYPE",
        asynchronous=False,
    )
    def get_nbd_info(self, context: Context, vdi: str) -> Value:
        """One entry for each address, on a network for NBD, of each host that sees the SR. Often none."""
        record = self._pool.database.get("VDI", vdi)
        refuse_metadata(vdi, record)
        return [
            {
                "exportname": f"/{record['uuid']}?session_id={context.session}",
                "address": address,
                "port": host.nbd_port,
                "cert": host.certificate.pem,
                "subject": host.certificate.subject,
            }
            for host in self._pool.hosts_seeing(record["SR"])
            for address in self._addresses(host)
        ]

    def _addresses(self, host: Host) -> list[str]:
        database = self._pool.database
        addresses: list[str] = []
        for pif in database.get("host", host.ref)["PIFs"]:
            record = database.get("PIF", pif)
            purposes = database.get("network", record["network"])["purpose"]
            if record["currently_attached"] and _PURPOSES.intersection(purposes):
                addresses += [address for address in [record["IP"], *record["IPv6"]] if address]
        return addresses

    async def _wait_until_unlinked(self, vdi: str) -> None:
        database = self._pool.database
        try:
            async with asyncio.timeout(self._pool.options.data_destroy_wait):
                while True:
                    changed = database.changed()
                    if not database.get("VDI", vdi)["VBDs"]:
                        return
                    await changed.wait()
        except TimeoutError:
            raise Failure("VDI_IN_USE", vdi, "data_destroy") from None

    def _check_licence(self) -> None:
        restrictions = self._pool.database.get("pool", self._pool.database.refs("pool")[0])["restrictions"]
        if restrictions.get("restrict_cbt") != "false":
            raise Failure("LICENCE_RESTRICTION", "CBT")

    def _check(self, vdi: str) -> Record:
        record = self._pool.database.get("VDI", vdi)
        require_feature(self._pool, record, _CAPABILITY)
        if record["is_a_snapshot"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {vdi}")
        if record["type"] not in ("user", "system"):
            raise Failure("VDI_INCOMPATIBLE_TYPE", vdi, record["type"])
        if record["on_boot"] == "reset":
            raise Failure("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
        return record


def _forgetful(bitmap: bytes, missing: int) -> bytes:
    """A bitmap without the last `missing` of its set bits."""
    number = int.from_bytes(bitmap)
    for _ in range(min(missing, number.bit_count())):
        number &= number - 1
    return number.to_bytes(len(bitmap))
