"""Thread counts under which bits are compared: one, what is set, and every core.

In: nothing. Out: counts, and a context that sets one for a while.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def thread_counts() -> tuple[int, ...]:
    """One, the number that is set, and the cores this process may use, each once."""
    return tuple(dict.fromkeys((1, torch.get_num_threads(), num_cores())))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Run with `number` threads of torch, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
