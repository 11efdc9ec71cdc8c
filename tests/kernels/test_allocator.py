"""The allocator setting is taken by glibc, keeps memory, and gives it back when asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from lockstep.kernels.allocator import give_back_freed_memory, keep_freed_memory

def resident() -> int:
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

assert keep_freed_memory()
before = resident()
blocks = [torch.ones(5_000_000) for _ in range(10)]  # 10 x 20 MB
del blocks
kept = resident()
give_back_freed_memory()
print(before, kept, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, kept, after = (int(number) for number in done.stdout.split())
    assert kept > before + 150
    assert after < before + 50
