"""The client side of a pool's API: calls and tasks over XML-RPC, bulk data over HTTP.

async with connect(url, user, Secret(password), Trust.pinned("sha256:…")) as pool:
    snapshot = await pool.run("VM.snapshot", vm, "name")
    async with open_transfers(pool) as transfers, transfers.export_vdi(vdi, format="vhd") as stream:
        ...
"""

from protocol.xapi.caller import Patience
from protocol.xapi.export import ExportStream
from protocol.xapi.nbd_info import nbd_endpoints
from protocol.xapi.records import (
    NULL_REF,
    HostRecord,
    NetworkRecord,
    PBDRecord,
    PoolRecord,
    SRRecord,
    TaskRecord,
    VBDRecord,
    VDIRecord,
    VIFRecord,
    VMRecord,
    is_null,
    parse_record,
    parse_records,
    parse_time,
)
from protocol.xapi.session import Pool, Version, connect
from protocol.xapi.transfer import Transfers, open_transfers
from protocol.xapi.trust import Trust
from protocol.xapi.wire import END_OF_FRAMES, FRAME_HEAD_LENGTH, frame_head, framed_length

__all__ = [
    "END_OF_FRAMES",
    "FRAME_HEAD_LENGTH",
    "NULL_REF",
    "ExportStream",
    "HostRecord",
    "NetworkRecord",
    "PBDRecord",
    "Patience",
    "Pool",
    "PoolRecord",
    "SRRecord",
    "TaskRecord",
    "Transfers",
    "Trust",
    "VBDRecord",
    "VDIRecord",
    "VIFRecord",
    "VMRecord",
    "Version",
    "connect",
    "frame_head",
    "framed_length",
    "is_null",
    "nbd_endpoints",
    "open_transfers",
    "parse_record",
    "parse_records",
    "parse_time",
]
