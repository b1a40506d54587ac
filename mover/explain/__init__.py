"""What the next run of a job would do with each disk, and why, without running it."""

from mover.explain.outlook import DiskOutlook, VmOutlook
from mover.explain.snapshots import KeptSnapshot
from mover.explain.vms import explain, look_ahead, stored_of

__all__ = ["DiskOutlook", "KeptSnapshot", "VmOutlook", "explain", "look_ahead", "stored_of"]
