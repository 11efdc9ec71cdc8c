"""A matrix product whose rows have the same bits whatever the number of rows, their order and the thread count.

In: rows and an [out, in] weight, as it is or packed. Out: rows.

A library picks its kernel by the number of rows, and kernels round alike only by luck. Measured with torch 2.13: on an
AMD EPYC (AVX-512 BF16) all are alike from 8 rows up; on an Intel Xeon with AMX, oneDNN's bf16 products of 33 to about
400 rows differ from smaller and larger ones (which of them depends on the shape, the threads and the bias), and MKL's
fp32 product of 2 threads from that of one. A difference may be rare: one element in ten thousand. So the machine is
asked, once per shape, for a way that moves no bit: our own product (native/product.cpp), which works on 32 rows at a
time and never anything else; all rows at once; or the library's product in blocks of one fixed size. Which is tried
first depends on the machine's instructions, not on its speed today: a run that goes on tomorrow takes the same way.

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
from lockstep.kernels.native.library import operators_for
from lockstep.kernels.record import recorded
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


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A weight with a copy laid out for the product: derived state, made anew by whoever changes the weight.

    A change in place is noticed at the next product. A change of the memory behind torch's back is not.
    """

    weight_OI: Tensor  # as given
    content: Tensor  # what is multiplied: panels, or a weight
    version: int  # of `weight_OI` when it was packed
    wide: bool  # the result is the fp32 sums, not rounded to the weight's dtype

    @property
    def panels(self) -> bool:
        """Whether `content` is laid out for our own product."""
        return self.content.dim() == 4

    @property
    def current(self) -> bool:
        """Whether the weight was not written to since it was packed."""
        return self.version == _version(self.weight_OI)

    def require_current(self) -> None:
        """Raise `NumericsError` if the weight was written to since it was packed."""
        if not self.current:
            raise NumericsError(
                message(
                    f"packed weight ({list(self.weight_OI.shape)})", "a packed copy must be that of its weight",
                    got="a weight changed in place", expected="the weight that was packed", do="Pack it again",
                )
            )  # fmt: skip


def pack(weight_OI: Tensor, wide: bool = False) -> Packed:
    """Lay a weight out for `linear`; same bits as unpacked. Where the machine has no use for it, no copy is made.

    With `wide` the rows come out in fp32, exact products of the given numbers summed in fp32: what an fp32 copy of a
    bf16 weight gives, up to the order of the sum, at the speed of bf16. Where that cannot be had, the copy is made.
    """
    detached, version = weight_OI.detach(), _version(weight_OI)
    if way_of(weight_OI.shape[0], weight_OI.shape[1], weight_OI.dtype, weight_OI.device, wide).native:
        return Packed(weight_OI, _native(detached).pack(detached), version, wide)
    return Packed(weight_OI, detached.float() if wide else detached, version, wide)


def linear(x_NI: Tensor, weight: Tensor | Packed, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` -> [N, O], differentiable unless `wide`.

    Raises `NumericsError` where no way keeps rows invariant, or a packed weight is out of date.
    """
    if not isinstance(weight, Packed):
        return recorded(_Linear, x_NI, weight, bias_O, weight.detach())
    weight.require_current()
    if weight.wide:
        return _wide(x_NI, weight, bias_O)
    return recorded(_Linear, x_NI, weight.weight_OI, bias_O, weight.content)


@dataclass(frozen=True, slots=True)
class Way:
    """`block` rows go into one product, exactly; 0: all at once. `onednn`: not torch's choice, which is MKL in fp32.

    `native`: our own product, in blocks of its own.
    """

    block: int = 0
    onednn: bool = False
    native: bool = False

    def __str__(self) -> str:
        if self.native:
            return "32 rows at a time, own product"
        return f"{f'{self.block} rows at a time' if self.block else 'all rows at once'}{', oneDNN' * self.onednn}"


def way_of(out: int, width: int, dtype: torch.dtype, device: torch.device, wide: bool = False) -> Way:
    """The way of products of this shape. Measured on random numbers, with one thread and with all.

    Raises `NumericsError` if every candidate fails.
    """
    return _measured(out, width, dtype, device, wide, _has_own(width, dtype, device))


@functools.cache
def _works() -> bool:
    """Whether this CPU has the instructions of our product: it is made of oneDNN's, which needs AVX-512 BF16."""
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    try:
        return float(_native(x).product(x, x, None, 1, True)) == 2.0
    except RuntimeError:
        return False


def _native(x: Tensor) -> Any:
    found = operators_for(x)
    assert found is not None, f"our own product does not take {x.dtype} on {x.device}"
    return found


def _has_own(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    if dtype is not torch.bfloat16 or device.type != "cpu" or width % 2:
        return False
    return operators_for(torch.empty(0, dtype=dtype)) is not None and _works()


@functools.cache  # what a machine does with a shape does not change while a process lives
def _measured(out: int, width: int, dtype: torch.dtype, device: torch.device, wide: bool, own: bool) -> Way:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(min(out, _PERIOD), width, generator=generator).to(device, dtype)
    weight = weight.repeat(-(-out // _PERIOD), 1)[:out].contiguous()
    sizes = _SIZES if out * width < _LARGE else _FEW_SIZES
    x = torch.randn(2 * sizes[-1], width, generator=generator).to(device, dtype)
    for way in _candidates(dtype, device, wide, own):
        if _agrees(way, x, weight, sizes[-1:] if way.block else sizes):
            return way
    if wide:  # an fp32 copy will be multiplied
        return way_of(out, width, torch.float32, device)
    raise NumericsError(
        message(
            f"linear ({out} x {width} {dtype})", "a row's bits must not depend on its neighbours", got="they do",
            expected=f"equal bits at one of {BLOCKS} rows", do="Set engine.dtype to the other of bfloat16 and float32",
        )
    )  # fmt: skip


def _candidates(dtype: torch.dtype, device: torch.device, wide: bool, own: bool) -> tuple[Way, ...]:
    native = (Way(native=True),) * own
    if wide:
        return native
    blocks = tuple(map(Way, BLOCKS))
    if dtype is torch.bfloat16 and device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        # The library is never given all rows: sizes between those that were measured have been seen to differ.
        return (*native, *blocks)
    onednn = dtype is torch.float32 and device.type == "cpu" and torch.backends.mkldnn.is_available()
    return (*((Way(0, True),) if onednn else ()), Way(), *native, *blocks)


@torch.no_grad()
def _agrees(way: Way, x: Tensor, weight: Tensor, sizes: Sequence[int]) -> bool:
    """Whether a row has the same bits in products of all `sizes`, anywhere in them, with one thread and with all."""
    shift = 5
    biases = (None,) if weight.numel() >= _LARGE else (None, weight[:, 0].contiguous())  # another kernel of the library
    first: dict[bool, Tensor] = {}
    for threads in thread_counts():
        with using_threads(threads):
            for size, bias in ((size, bias) for size in sorted(sizes, reverse=True) for bias in biases):
                rows, moved = (_cut(way, part, weight, bias) for part in (x[:size], x[shift : shift + size]))
                known = first.setdefault(bias is None, rows)
                if not torch.equal(rows, known[:size]) or not torch.equal(moved[:-shift], rows[shift:]):
                    return False
    return True


def _cut(way: Way, x_NI: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    most = way.block or MOST_ROWS
    if x_NI.shape[0] <= most:
        return _one(way, x_NI, weight, bias_O)
    return torch.cat([_one(way, part, weight, bias_O) for part in x_NI.split(most)])


def _one(way: Way, x_NI: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    if way.native:  # the sums before they are rounded: nothing may hide in the rounding
        return _native(x_NI).product(x_NI, weight, bias_O, weight.shape[0], True)
    if way.onednn:
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias_O, "none", [], "")
    return F.linear(x_NI, weight, bias_O)


def _product(x_NI: Tensor, out: int, content: Tensor, bias_O: Tensor | None) -> Tensor:
    if content.dim() == 4 or (way := way_of(out, content.shape[1], content.dtype, content.device)).native:
        return _native(x_NI).product(x_NI, content, bias_O, out, False)
    rows = x_NI.shape[0]
    missing = -rows % (way.block or ALIGNMENT)
    padded = F.pad(x_NI, (0, 0, 0, missing)) if missing else x_NI
    return _cut(way, padded, content, bias_O)[:rows]


@torch.no_grad()
def _wide(x_NI: Tensor, packed: Packed, bias_O: Tensor | None) -> Tensor:
    out, content = packed.weight_OI.shape[0], packed.content
    x_NI = x_NI.to(content.dtype)
    if content.dim() == 4:
        return _native(x_NI).product(x_NI, content, bias_O, out, True)
    return _product(x_NI, out, content, None if bias_O is None else bias_O.float())


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class _Linear(torch.autograd.Function):
    """The forward is cut; the backward need only be deterministic, and is one product for each input."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x_NI, weight_OI, bias_O, content = inputs
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.biased = bias_O is not None
        return _product(x_NI, weight_OI.shape[0], content, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        (grad_NO,) = grads
        grad_x = grad_NO @ weight_OI if ctx.needs_input_grad[0] else None
        grad_weight = grad_NO.T @ x_NI if ctx.needs_input_grad[1] else None
        grad_bias = grad_NO.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None
