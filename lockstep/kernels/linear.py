"""A matrix product whose rows have the same bits whatever the number of rows, their order and the thread count.

In: rows and an [out, in] weight. Out: rows.

A library picks its kernel by the number of rows, and kernels round alike only by luck. Measured with torch 2.13: on an
AMD EPYC (AVX-512 BF16) all are alike from 8 rows up; on an Intel Xeon with AMX, oneDNN's bf16 products of 33 to about
300 rows differ from smaller and larger ones, and MKL's fp32 product of 2 threads from that of one. So the machine is
asked, once per shape, for the fastest way that moves no bit: rows go in all at once, or in blocks of one fixed size, so
that one kernel does them all.

Letters: N rows, I in, O out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lockstep.errors import NumericsError, message
from lockstep.kernels.threads import thread_counts, using_threads

ALIGNMENT = 8
"""Rows that go in all at once are padded to a multiple of this: 1 to 3 rows differ even where larger products agree."""

MOST_ROWS = 2048
"""Rows of one product; more are cut, so that no size is ever run that was not in reach of the measurement."""

BLOCKS = (64, 32, 16)
"""Fixed block sizes, the fastest first."""

_SIZES = (8, 16, 24, 32, 40, 64, 72, 96, 128, 136, 200, 256, 512, 1000, 1024, MOST_ROWS)
_FEW_SIZES = (8, 24, 64, 128, 256)  # of weights so large that the others would take seconds
_LARGE = 2**24  # parameters
_PERIOD = 1024  # rows of weights that are drawn; a larger weight repeats them


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` -> [N, O], differentiable. Raises `NumericsError` where no way keeps rows invariant."""
    return _Linear.apply(x_NI, weight_OI, bias_O)


@dataclass(frozen=True, slots=True)
class Way:
    """`block` rows go into one product, exactly; 0: all at once. `onednn`: not torch's choice, which is MKL in fp32."""

    block: int = 0
    onednn: bool = False

    def __str__(self) -> str:
        return f"{f'{self.block} rows at a time' if self.block else 'all rows at once'}{', oneDNN' * self.onednn}"


@functools.cache  # what a machine does with a shape does not change while a process lives
def way_of(out: int, width: int, dtype: torch.dtype, device: torch.device) -> Way:
    """The way of products of this shape. Measured on random numbers, with one thread and with all.

    Raises `NumericsError` if every candidate fails.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(min(out, _PERIOD), width, generator=generator).to(device, dtype)
    weight = weight.repeat(-(-out // _PERIOD), 1)[:out].contiguous()
    sizes = _SIZES if out * width < _LARGE else _FEW_SIZES
    x = torch.randn(2 * sizes[-1], width, generator=generator).to(device, dtype)
    onednn = dtype is torch.float32 and device.type == "cpu" and torch.backends.mkldnn.is_available()
    for way in (*((Way(0, True),) if onednn else ()), Way(), *map(Way, BLOCKS)):
        if _agrees(way, x, weight, (way.block,) if way.block else sizes):
            return way
    raise NumericsError(
        message(
            f"linear ({out} x {width} {dtype})", "a row's bits must not depend on its neighbours", got="they do",
            expected=f"equal bits at one of {BLOCKS} rows", do="Set engine.dtype to the other of bfloat16 and float32",
        )
    )  # fmt: skip


@torch.no_grad()
def _agrees(way: Way, x: Tensor, weight: Tensor, sizes: Sequence[int]) -> bool:
    """Whether a row has the same bits in products of all `sizes`, anywhere in them, with one thread and with all."""
    shift = 5
    first: Tensor | None = None
    for threads in thread_counts():
        with using_threads(threads):
            for size in sorted(sizes, reverse=True):
                rows = _one(way, x[:size], weight, None)
                first = rows if first is None else first
                moved = _one(way, x[shift : shift + size], weight, None)
                if not torch.equal(rows, first[:size]) or not torch.equal(moved[:-shift], rows[shift:]):
                    return False
    return True


def _one(way: Way, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    if way.onednn:
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


def _product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    rows, way = x_NI.shape[0], way_of(*weight_OI.shape, weight_OI.dtype, weight_OI.device)
    missing = -rows % (way.block or ALIGNMENT)
    padded = F.pad(x_NI, (0, 0, 0, missing)) if missing else x_NI
    most = way.block or MOST_ROWS
    if padded.shape[0] <= most:
        return _one(way, padded, weight_OI, bias_O)[:rows]
    return torch.cat([_one(way, part, weight_OI, bias_O) for part in padded.split(most)])[:rows]


class _Linear(torch.autograd.Function):
    """The forward is cut; the backward need only be deterministic, and is one product for each input."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x_NI, weight_OI, bias_O = inputs
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.biased = bias_O is not None
        return _product(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        (grad_NO,) = grads
        grad_x = grad_NO @ weight_OI if ctx.needs_input_grad[0] else None
        grad_weight = grad_NO.T @ x_NI if ctx.needs_input_grad[1] else None
        grad_bias = grad_NO.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias
