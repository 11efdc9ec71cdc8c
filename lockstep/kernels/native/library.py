"""Which kernels run: C++ on CPU tensors of bfloat16 and float32, PyTorch's operators for everything else.

In: `LOCKSTEP_KERNELS` (read by config.py). Out: the loaded operators, or None: the PyTorch reference runs. Both keep
rows invariant; they do not give the same bits, so a process uses one of them for engine and trainer alike.
"""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lockstep import config
from lockstep.errors import ConfigError, message
from lockstep.kernels.native.build import BuildError, library

MODES = ("auto", "native", "reference")
DTYPES = (torch.bfloat16, torch.float32)
OPERATORS = (
    "attention", "attention_backward", "pack", "product", "rms_norm", "add_rms_norm", "silu_mul", "rotate", "write_kv",
    "draw", "score", "slope", "layers",
)  # fmt: skip


def operators() -> Any | None:
    """The operators by name, or None where the reference runs. Compiles at the first call on a machine.

    Raises `ConfigError` if `LOCKSTEP_KERNELS=native` and they cannot be had.
    """
    mode = config.kernels()
    if mode not in MODES:
        do = "Unset it, or set it to one of them"
        raise ConfigError(
            message("LOCKSTEP_KERNELS", "unknown choice of kernels", got=mode, expected=" or ".join(MODES), do=do)
        )
    return None if mode == "reference" else _load(mode)


def operators_for(*tensors: Tensor) -> Any | None:
    """`operators` if they take these tensors: all on the CPU, of one dtype, which is bfloat16 or float32."""
    dtype = tensors[0].dtype
    if dtype not in DTYPES:
        return None
    for x in tensors:  # asked hundreds of times in a step
        if x.dtype is not dtype or not x.is_cpu:
            return None
    return operators()


@functools.cache
def _load(mode: str) -> SimpleNamespace | None:
    namespace = torch.ops.lockstep
    if not hasattr(namespace, "attention"):  # a process registers them once, wherever the library lies
        try:
            torch.ops.load_library(str(library(config.cache_dir() / "kernels")))
        except (BuildError, OSError) as cause:
            if mode == "native":
                rule, do = "the C++ kernels must load", "Install g++, or set LOCKSTEP_KERNELS=auto to run without them"
                raise ConfigError(
                    message("LOCKSTEP_KERNELS (native)", rule, got=cause, expected="a library", do=do)
                ) from cause
            sys.stderr.write(
                f"WARNING: no CPU kernels: {cause}; the PyTorch reference runs instead (slower, same guarantees)\n"
            )
            return None
    # The one overload of each: torch need not look for it at every call.
    return SimpleNamespace(**{name: getattr(namespace, name).default for name in OPERATORS})
