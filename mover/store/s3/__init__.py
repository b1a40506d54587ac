"""Object storage that speaks S3 as a back end, through `obstore`."""

from mover.store.s3.access import S3Access
from mover.store.s3.backend import S3Backend

__all__ = ["S3Access", "S3Backend"]
