"""The store: deduplicated, compressed chunks of disks in packs, and the restore points made of them. Synchronous.

The format is described byte by byte in docs/FORMAT.md.
"""

from mover.store.identity import ID_LENGTH
from mover.store.keys import Cost, KeyRing, Slot
from mover.store.names import PartialName
from mover.store.partial import PartialDisk, PartialRun, PartialVm
from mover.store.point import MEMORY, CopiedFrom, Point, PointDisk, PointRecord
from mover.store.prune import PruneReport
from mover.store.reader import DiskReader
from mover.store.record import MAX_RAW
from mover.store.repair import Loss, RepairReport
from mover.store.s3 import S3Access
from mover.store.seal import Sealed
from mover.store.store import Store
from mover.store.tree import Begun, Tree
from mover.store.verify import Damage
from mover.store.waiting import Patience
from mover.store.writer import Writer

__all__ = [
    "ID_LENGTH",
    "MAX_RAW",
    "MEMORY",
    "Begun",
    "CopiedFrom",
    "Cost",
    "Damage",
    "DiskReader",
    "KeyRing",
    "Loss",
    "PartialDisk",
    "PartialName",
    "PartialRun",
    "PartialVm",
    "Patience",
    "Point",
    "PointDisk",
    "PointRecord",
    "PruneReport",
    "RepairReport",
    "S3Access",
    "Sealed",
    "Slot",
    "Store",
    "Tree",
    "Writer",
]
