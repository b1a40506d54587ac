"""Storage drivers and repositories: what they can do."""

from __future__ import annotations

from mover.simulator.context import Context
from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.values import Record

_PLAIN = (
    "SR_PROBE SR_UPDATE SR_SUPPORTS_LOCAL_CACHING VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH VDI_CLONE VDI_SNAPSHOT"
)
_MORE = "VDI_RESIZE VDI_UPDATE VDI_GENERATE_CONFIG VDI_MIRROR VDI_RESET_ON_BOOT/2 ATOMIC_PAUSE"
_OPERATIONS = {
    "vdi_create": "VDI_CREATE",
    "vdi_destroy": "VDI_DELETE",
    "vdi_resize": "VDI_RESIZE",
    "vdi_clone": "VDI_CLONE",
    "vdi_snapshot": "VDI_SNAPSHOT",
    "vdi_mirror": "VDI_MIRROR",
    "vdi_set_on_boot": "VDI_RESET_ON_BOOT",
    "vdi_enable_cbt": "VDI_CONFIG_CBT",
    "vdi_disable_cbt": "VDI_CONFIG_CBT",
    "vdi_data_destroy": "VDI_CONFIG_CBT",
    "vdi_list_changed_blocks": "VDI_CONFIG_CBT",
}
_ALWAYS = ("update", "scan", "unplug", "pbd_create", "pbd_destroy", "vdi_introduce", "destroy", "forget", "plug")


def driver_features(cbt: bool) -> dict[str, int]:
    """The capability map of a driver of the VHD family (sm drivers/NFSSR.py, EXTSR.py)."""
    names = f"{_PLAIN} {_MORE}{' VDI_CONFIG_CBT' if cbt else ''}".split()
    pairs = (name.partition("/") for name in names)
    return {name: int(version or 1) for name, _, version in pairs}


def allowed_operations(features: dict[str, int]) -> list[str]:
    """SR.allowed_operations: unlike those of a VDI, they do list the CBT operations."""
    return [*_ALWAYS, *(operation for operation, feature in _OPERATIONS.items() if feature in features)]


def refresh_usage(database: Database, sr: str) -> None:
    """Add up what the VDIs take."""
    vdis = [database.get("VDI", vdi) for vdi in database.get("SR", sr)["VDIs"]]
    database.update(
        "SR",
        sr,
        physical_utilisation=sum(vdi["physical_utilisation"] for vdi in vdis),
        virtual_allocation=sum(vdi["virtual_size"] for vdi in vdis),
    )


class SrCalls:
    """The calls of SR and PBD."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("SR.scan(sr: SR ref) -> void")
    def scan(self, context: Context, sr: str) -> None:
        """Bring the sizes up to date, and forget the disks that are gone."""
        database, disks = self._pool.database, self._pool.disks
        for vdi in database.get("SR", sr)["VDIs"]:
            uuid = database.get("VDI", vdi)["uuid"]
            if uuid in disks:
                database.update("VDI", vdi, physical_utilisation=disks.physical_utilisation(uuid))
            else:
                database.destroy("VDI", vdi)
        refresh_usage(database, sr)

    @call("SR.update(sr: SR ref) -> void")
    def update(self, context: Context, sr: str) -> None:
        refresh_usage(self._pool.database, sr)

    @call("SR.set_name_label(sr: SR ref, value: string) -> void")
    def set_name_label(self, context: Context, sr: str, value: str) -> None:
        self._pool.database.update("SR", sr, name_label=value)

    @call("SR.set_name_description(sr: SR ref, value: string) -> void")
    def set_name_description(self, context: Context, sr: str, value: str) -> None:
        self._pool.database.update("SR", sr, name_description=value)

    @call("PBD.plug(self: PBD ref) -> void")
    def plug(self, context: Context, pbd: str) -> None:
        self._pool.database.update("PBD", pbd, currently_attached=True)

    @call("PBD.unplug(self: PBD ref) -> void")
    def unplug(self, context: Context, pbd: str) -> None:
        self._pool.database.update("PBD", pbd, currently_attached=False)


def require_feature(pool: Pool, vdi: Record, feature: str) -> None:
    """Raises SR_OPERATION_NOT_SUPPORTED where the driver cannot."""
    if feature not in pool.sm_features(vdi["SR"]):
        raise Failure("SR_OPERATION_NOT_SUPPORTED", vdi["SR"])
