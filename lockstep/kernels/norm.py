"""RMSNorm in fp32 over the last dimension, rounded once to the input's dtype.

In: rows [..., E] and a gain [E]. Out: rows. The backward pass keeps only the input and one scale per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lockstep.kernels.native.library import operators_for
from lockstep.kernels.record import recorded


def rms_norm(x: Tensor, gain_E: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * gain`, any leading dimensions, dtype of `x`."""
    return recorded(_RmsNorm, x, gain_E, eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_E: Tensor, eps: float) -> Tensor:
        operators = operators_for(x, gain_E)
        if operators is not None:
            out, scale = operators.rms_norm(x, gain_E, eps)
            ctx.save_for_backward(x, gain_E, scale)
            return out
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, gain_E, scale)
        return wide.mul_(scale).mul_(gain_E.float()).to(x.dtype) if x.dtype != torch.float32 else wide * scale * gain_E

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain_E, scale = ctx.saved_tensors
        grad = grads[0].float()
        unit = x.float() * scale
        weighted = grad * gain_E.float()
        grad_x = (weighted - unit * (weighted * unit).mean(-1, keepdim=True)) * scale
        grad_gain = (grad * unit).flatten(0, -2).sum(0)
        return grad_x.to(x.dtype), grad_gain.to(gain_E.dtype), None
