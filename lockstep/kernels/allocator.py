"""Keep freed memory instead of giving it back to the kernel after every large temporary.

In: nothing. Out: a setting of the process. glibc serves large blocks by mmap and unmaps them when they are freed; every
temporary above 32 MB then costs a page fault per 4 kB, over and over. On the machine where this was found that made a
training step several times slower (LOG.md, 2026-11-21).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never trim it; returns whether the C library took the setting."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    limit = 2**31 - 1  # an int; trims and maps from 2 GB on
    return bool(mallopt(_M_MMAP_THRESHOLD, limit)) and bool(mallopt(_M_TRIM_THRESHOLD, limit))
