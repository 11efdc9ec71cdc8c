"""Keep freed memory instead of giving it back to the kernel after every temporary.

In: nothing. Out: a setting of the process. glibc trims its heap and serves large blocks by mmap; every temporary then
costs a page fault per 4 kB, over and over, which made a training step up to twice as long (LOG.md, 2026-11-21). Blocks
of 64 MB and more still go back. Kept blocks fragment the heap, so a long run gives everything back now and then.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAPPED_FROM = 64 << 20
_NEVER = 2**31 - 1  # an int


def keep_freed_memory() -> bool:
    """Serve blocks under 64 MB from a heap that is never trimmed; returns whether the C library took the setting."""
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back_freed_memory() -> None:
    """Return what is free in the heap to the kernel; the next temporaries fault it in again, which takes a moment."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
