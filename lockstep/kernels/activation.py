"""SiLU(gate) * up, the gated activation of Llama-like models, in fp32, rounded once.

In: gate and up side by side [T, 2I]. Out: [T, I]. `torch.nn.functional.silu` is not used: its vectorised body and
scalar tail round differently in fp32, so the bits of an element depend on where it lies in the array.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lockstep.kernels.native.library import operators_for
from lockstep.kernels.record import recorded


def silu_mul(gate_up_T2I: Tensor) -> Tensor:
    """`silu(gate) * up` with gate the first half of the columns; dtype of the input."""
    return recorded(_SiluMul, gate_up_T2I)


def _halves(gate_up_T2I: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = gate_up_T2I.float().chunk(2, dim=-1)
    return gate, up, gate.neg().exp_().add_(1.0).reciprocal_()


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2I: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_T2I)
        operators = operators_for(gate_up_T2I)
        if operators is not None:
            return operators.silu_mul(gate_up_T2I)
        gate, up, sigmoid = _halves(gate_up_T2I)
        return sigmoid.mul_(gate).mul_(up).to(gate_up_T2I.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_T2I,) = ctx.saved_tensors
        grad = grads[0].float()
        gate, up, sigmoid = _halves(gate_up_T2I)
        silu = gate * sigmoid
        slope = sigmoid + silu * (1.0 - sigmoid)
        return torch.cat((grad * up * slope, grad * silu), dim=-1).to(gate_up_T2I.dtype)
