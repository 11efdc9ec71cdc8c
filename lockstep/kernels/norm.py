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


def add_rms_norm(x: Tensor, delta: Tensor, gain_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + delta`, rounded, and its `rms_norm`: the two steps between layers in one."""
    return recorded(_AddRmsNorm, x, delta, gain_E, eps)


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
        grad_x, grad_gain = _slopes(grads[0], *ctx.saved_tensors)
        return grad_x.to(grads[0].dtype), grad_gain, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, gain_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        operators = operators_for(x, delta, gain_E)
        if operators is None:
            total = x + delta
            return total, _RmsNorm.forward(ctx, total, gain_E, eps)
        total, out, scale = operators.add_rms_norm(x, delta, gain_E, eps)
        ctx.save_for_backward(total, gain_E, scale)
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_x, grad_gain = _slopes(grads[1], *ctx.saved_tensors)
        grad = grad_x.add_(grads[0]).to(grads[0].dtype)
        return grad, grad, grad_gain, None


def _slopes(grad_out: Tensor, x: Tensor, gain_E: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the rows, in fp32, and of the gain, in its dtype."""
    grad = grad_out.float()
    unit = x.float() * scale
    weighted = grad * gain_E.float()
    grad_x = (weighted - unit * (weighted * unit).mean(-1, keepdim=True)) * scale
    return grad_x, (grad * unit).flatten(0, -2).sum(0).to(gain_E.dtype)
