"""What would happen if the job ran now, and what stops it. Nothing is changed, neither on the pool nor in the store."""

from mover.check.finding import Finding, Level, verdict
from mover.check.job import check_job

__all__ = ["Finding", "Level", "check_job", "verdict"]
