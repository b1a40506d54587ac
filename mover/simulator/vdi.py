"""Disks: creating, snapshotting, resizing, destroying.

Source: xen-api ocaml/xapi/xapi_vdi.ml; sm libs/sm/VDI.py, vhdutil.py (sizes, length of chains).
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Mapping
from typing import TypeVar

from mover.simulator.context import Context
from mover.simulator.database import Database
from mover.simulator.failure import Failure, storage_failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.sr import refresh_usage, require_feature
from mover.simulator.storage import StorageError
from mover.simulator.values import NULL, BadValueError, Record, Value, coerce, now

MIB = 1 << 20
VHD_UNIT = 2 * MIB
VHD_LIMIT = 2040 << 30
CHAIN_LIMIT = 30
METADATA = "cbt_metadata"
_Result = TypeVar("_Result")
_CAPTURED = "name_label name_description type sharable xenstore_data on_boot allow_caching tags other_config".split()


def constructor_fields(pool: Pool, cls: str, given: Mapping[str, Value]) -> Record:
    """The fields a constructor reads out of a record: those a client may set; others are ignored.

    A field without a default that is missing is an exception nobody catches (gen_server.ml).
    """
    fields: Record = {}
    for field in pool.database.models[cls].fields.values():
        if field.qualifier == "RO/runtime":
            continue
        if field.name not in given:
            if field.mandatory:
                raise Failure("INTERNAL_ERROR", f'Server_helpers.Dispatcher_FieldNotFound("{field.name}")')
            continue
        try:
            fields[field.name] = coerce(field.type, given[field.name])
        except BadValueError:
            raise Failure("FIELD_TYPE_ERROR", field.name) from None
    return fields


def refuse_metadata(vdi: str, record: Record) -> None:
    """Raises VDI_INCOMPATIBLE_TYPE for what is left of a snapshot whose data is gone."""
    if record["type"] == METADATA:
        raise Failure("VDI_INCOMPATIBLE_TYPE", vdi, METADATA)


def create_disk(pool: Pool, args: Mapping[str, Value]) -> str:
    """An empty disk. The size is rounded up to 2 MiB, as VHD needs it; UUID and location are always new."""
    fields = constructor_fields(pool, "VDI", args)
    if fields["type"] == METADATA:
        raise Failure("VDI_INCOMPATIBLE_TYPE", NULL, METADATA)
    pool.database.get("SR", fields["SR"])
    require_feature(pool, fields, "VDI_CREATE")
    size = max(-(-fields["virtual_size"] // VHD_UNIT), 1) * VHD_UNIT
    if size > VHD_LIMIT:
        raise storage_failure(79, "VDI Invalid size")
    if pool.faults.sr_full:
        raise storage_failure(44, "There is insufficient space")
    uuid = str(uuids.uuid4())
    storage(lambda: pool.disks.create(uuid, size))
    vdi = pool.database.create("VDI", fields | {"virtual_size": size, "location": uuid}, uuid=uuid)
    refresh_usage(pool.database, fields["SR"])
    return vdi


def allowed_operations(database: Database, record: Record) -> list[str]:
    """VDI.allowed_operations: it never lists what came after release 7.0, so nothing of change tracking."""
    if record["current_operations"]:
        return []
    if record["type"] == METADATA:
        return ["destroy", "forget", "update"]
    vbds = (database.find("VBD", vbd) for vbd in record["VBDs"])
    if any(vbd is not None and vbd["currently_attached"] for vbd in vbds):
        return ["snapshot", "clone", "copy", "update", "generate_config"]
    return ["snapshot", "clone", "copy", "update", "generate_config", "resize", "destroy", "forget"]


def snapshot_disk(pool: Pool, vdi: str) -> str:
    """Take a snapshot of one disk, whatever its VM does. Returns the snapshot's reference."""
    record = pool.database.get("VDI", vdi)
    pool.require_host_of(record["SR"])
    _check_snapshot(pool, vdi, record)
    uuid = str(uuids.uuid4())
    storage(lambda: pool.disks.snapshot(record["uuid"], uuid))
    return _copy_record(pool, record, uuid, {"is_a_snapshot": True, "snapshot_of": vdi, "snapshot_time": now()})


def clone_disk(pool: Pool, vdi: str) -> str:
    """A writable disk with the same content and no change log."""
    record = pool.database.get("VDI", vdi)
    refuse_metadata(vdi, record)
    require_feature(pool, record, "VDI_CLONE")
    uuid = str(uuids.uuid4())
    storage(lambda: pool.disks.clone(record["uuid"], uuid))
    return _copy_record(pool, record, uuid, {})


def destroy_disk(pool: Pool, vdi: str) -> None:
    """Destroy a disk that nobody has attached."""
    record = pool.database.get("VDI", vdi)
    pool.require_host_of(record["SR"])
    if pool.attached(vdi):
        raise Failure("VDI_IN_USE", vdi, "destroy")
    if not record["managed"]:
        raise Failure("VDI_NOT_MANAGED", vdi)
    for vbd in record["VBDs"]:
        pool.database.destroy("VBD", vbd)
    storage(lambda: pool.disks.delete(record["uuid"]))
    pool.database.destroy("VDI", vdi)
    refresh_usage(pool.database, record["SR"])


def storage(action: Callable[[], _Result]) -> _Result:
    """Carry out something on the disks; its errors become those of a storage driver."""
    try:
        return action()
    except StorageError as error:
        raise storage_failure(error.code, error.message) from None


def refresh_disk(pool: Pool, vdi: str) -> None:
    """Let the record follow what the disk has become."""
    record = pool.database.find("VDI", vdi)
    if record is not None:
        pool.database.update(
            "VDI",
            vdi,
            physical_utilisation=pool.disks.physical_utilisation(record["uuid"]),
            virtual_size=pool.disks.size(record["uuid"]),
            cbt_enabled=pool.disks.cbt_enabled(record["uuid"]),
        )
        refresh_usage(pool.database, record["SR"])


def _check_snapshot(pool: Pool, vdi: str, record: Record) -> None:
    refuse_metadata(vdi, record)
    require_feature(pool, record, "VDI_SNAPSHOT")
    if record["sharable"]:
        raise Failure("VDI_IS_SHARABLE", vdi)
    if record["on_boot"] == "reset":
        raise Failure("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
    if not record["managed"]:
        raise Failure("VDI_NOT_MANAGED", vdi)
    if pool.disks.chain_depth(record["uuid"]) >= CHAIN_LIMIT:
        raise storage_failure(109, "The snapshot chain is too long")
    if pool.faults.sr_full:
        raise storage_failure(44, "There is insufficient space")


def _copy_record(pool: Pool, record: Record, uuid: str, more: Mapping[str, Value]) -> str:
    fields = {name: record[name] for name in _CAPTURED}
    fields |= {
        "SR": record["SR"],
        "location": uuid,
        "virtual_size": record["virtual_size"],
        "physical_utilisation": pool.disks.physical_utilisation(uuid),
        "cbt_enabled": pool.disks.cbt_enabled(uuid),
        "sm_config": {"vhd-parent": str(uuids.uuid4())} | _image_format(record),
    }
    vdi = pool.database.create("VDI", fields | dict(more), uuid=uuid)
    refresh_usage(pool.database, record["SR"])
    return vdi


def _image_format(record: Record) -> Record:
    """What the SR keeps the disk in, where it can choose: the same for all that is made of a disk."""
    return {name: value for name, value in record["sm_config"].items() if name == "image-format"}


class VdiCalls:
    """The calls of VDI that have nothing to do with change tracking."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("VDI.create(args: VDI record) -> VDI ref")
    def create(self, context: Context, args: Record) -> str:
        return create_disk(self._pool, args)

    @call("VDI.destroy(self: VDI ref) -> void")
    async def destroy(self, context: Context, vdi: str) -> None:
        async with self._pool.busy.hold(context, "VDI", vdi, "destroy"):
            destroy_disk(self._pool, vdi)

    @call("VDI.snapshot(vdi: VDI ref, driver_params: (string -> string) map = {}) -> VDI ref")
    async def snapshot(self, context: Context, vdi: str, driver_params: dict[str, str]) -> str:
        async with self._pool.busy.hold(context, "VDI", vdi, "snapshot"):
            return snapshot_disk(self._pool, vdi)

    @call("VDI.clone(vdi: VDI ref, driver_params: (string -> string) map = {}) -> VDI ref")
    async def clone(self, context: Context, vdi: str, driver_params: dict[str, str]) -> str:
        async with self._pool.busy.hold(context, "VDI", vdi, "clone"):
            return clone_disk(self._pool, vdi)

    @call("VDI.resize(vdi: VDI ref, size: int) -> void")
    async def resize(self, context: Context, vdi: str, size: int) -> None:
        """Only growth, and only while nobody has the disk attached."""
        async with self._pool.busy.hold(context, "VDI", vdi, "resize"):
            record = self._pool.database.get("VDI", vdi)
            refuse_metadata(vdi, record)
            if self._pool.attached(vdi):
                raise Failure("VDI_IN_USE", vdi, "resize")
            rounded = -(-size // VHD_UNIT) * VHD_UNIT
            if rounded < record["virtual_size"]:
                raise storage_failure(79, "VDI Invalid size [opterr=shrinking not allowed]")
            storage(lambda: self._pool.disks.resize(record["uuid"], rounded))
            refresh_disk(self._pool, vdi)

    @call("VDI.update(vdi: VDI ref) -> void")
    def update(self, context: Context, vdi: str) -> None:
        refresh_disk(self._pool, vdi)

    @call("VDI.forget(vdi: VDI ref) -> void")
    def forget(self, context: Context, vdi: str) -> None:
        """Drop the record and leave the data."""
        self._pool.database.destroy("VDI", vdi)

    @call("VDI.set_name_label(self: VDI ref, value: string) -> void")
    def set_name_label(self, context: Context, vdi: str, value: str) -> None:
        self._pool.database.update("VDI", vdi, name_label=value)

    @call("VDI.set_name_description(self: VDI ref, value: string) -> void")
    def set_name_description(self, context: Context, vdi: str, value: str) -> None:
        self._pool.database.update("VDI", vdi, name_description=value)

    @call("VDI.set_sharable(self: VDI ref, value: bool) -> void")
    def set_sharable(self, context: Context, vdi: str, value: bool) -> None:
        self._pool.database.update("VDI", vdi, sharable=value)

    @call("VDI.set_read_only(self: VDI ref, value: bool) -> void")
    def set_read_only(self, context: Context, vdi: str, value: bool) -> None:
        self._pool.database.update("VDI", vdi, read_only=value)

    @call("VDI.set_allow_caching(self: VDI ref, value: bool) -> void")
    def set_allow_caching(self, context: Context, vdi: str, value: bool) -> None:
        self._pool.database.update("VDI", vdi, allow_caching=value)

    @call("VDI.set_on_boot(self: VDI ref, value: enum on_boot) -> void", errors="VDI_CBT_ENABLED")
    def set_on_boot(self, context: Context, vdi: str, value: str) -> None:
        if self._pool.database.get("VDI", vdi)["cbt_enabled"]:
            raise Failure("VDI_CBT_ENABLED", vdi)
        self._pool.database.update("VDI", vdi, on_boot=value)
