"""Job files: what to back up, from where, to where, and how."""

from mover.job.load import load_job, parse_job
from mover.job.model import (
    BackupSection,
    HooksSection,
    Job,
    LimitsSection,
    PoolSection,
    ReportSection,
    RestoreSection,
    ScheduleSection,
    SelectorSection,
    StoreSection,
)
from mover.job.secrets import read_secret
from mover.job.select import Records, SelectedDisk, SelectedVm, disks_of, select_vms

__all__ = [
    "BackupSection",
    "HooksSection",
    "Job",
    "LimitsSection",
    "PoolSection",
    "Records",
    "ReportSection",
    "RestoreSection",
    "ScheduleSection",
    "SelectedDisk",
    "SelectedVm",
    "SelectorSection",
    "StoreSection",
    "disks_of",
    "load_job",
    "parse_job",
    "read_secret",
    "select_vms",
]
