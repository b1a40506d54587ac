"""The C library's allocator, told to keep what is freed.

Compressing the chunks of a buffer takes some memory for each call: contexts, output. glibc maps anything that large
anew and gives it back at once, and the kernel clears every page each time. Measured: a tenth of the processor time of
a full went into that.
"""

from __future__ import annotations

import ctypes

MiB = 1 << 20
# mallopt(3)
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
# The largest that glibc takes; what is larger is mapped by itself, as usual.
_LARGEST = 32 * MiB
# So much free memory at its end an arena may keep.
_KEPT = 64 * MiB


def keep_freed_memory() -> None:
    """For this process from now on. Where the C library is another one, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
