"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-rotation layout as in HF checkpoints, in fp32.

In: rows of heads and their positions. Out: rotated rows. Letters: T tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lockstep.kernels.native.library import operators_for
from lockstep.kernels.record import recorded


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i / D) for i < D/2, fp32 [D/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / theta**exponent


def rotation(inverse_frequencies: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin fp32 [T, 1, D/2].

    The angle is an fp32 product, as in every implementation a model was trained with; its cosine is taken in fp64, so
    that a vectorised and a scalar code path cannot differ in the last bit of the fp32 result.
    """
    angle = (positions_T.float()[:, None] * inverse_frequencies[None, :]).double()
    return angle.cos().float()[:, None, :], angle.sin().float()[:, None, :]


def rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head of each token by its position; result contiguous, dtype of `x`."""
    return recorded(_Rotate, x_THD, cos, sin)


def _turn(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    operators = operators_for(x_THD)
    if operators is not None:
        return operators.rotate(x_THD, cos, sin)
    half = x_THD.shape[-1] // 2
    low, high = x_THD[..., :half].float(), x_THD[..., half:].float()
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    out[..., :half] = low * cos - high * sin
    out[..., half:] = high * cos + low * sin
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_THD, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None
