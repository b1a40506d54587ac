"""Let the kernel write a file to disk while it is being filled, so that the sync at its end has little left to do.

Left alone, the kernel begins when much of the memory is waiting to be written, or after half a minute.
"""

from __future__ import annotations

import ctypes
from threading import Lock

# SYNC_FILE_RANGE_WRITE of sync_file_range(2): what is dirty and not on its way is sent on its way.
_WRITE = 2
_EVERY = 32 << 20

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Writeback:
    """Of one open file: asks for it each time 32 MiB were written. Any thread may use it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = 0
        self._lock = Lock()

    def wrote(self, length: int) -> None:
        """So many bytes more were written. What goes wrong on the way to the disk is told by fsync, not here."""
        with self._lock:
            self._waiting += length
            if self._waiting < _EVERY:
                return
            self._waiting = 0
        begin_writing(self._descriptor)


def begin_writing(descriptor: int) -> bool:
    """Send on its way to the disk what of a file is not, and do not wait for it. False if that cannot be asked for."""
    return _sync_file_range is not None and _sync_file_range(descriptor, 0, 0, _WRITE) == 0
