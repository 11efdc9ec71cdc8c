"""Rows of the embedding table; gradients of repeated tokens are summed in fp32, in the order of the batch.

In: table [V, E], ids [T]. Out: rows [T, E]. (torch sums them in the table's dtype, in which a
token that occurs 64 times would lose the smaller addends.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def embed(table_VE: Tensor, ids_T: Tensor) -> Tensor:
    """`table[ids]`, differentiable in the table."""
    return _Embed.apply(table_VE, ids_T)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VE: Tensor, ids_T: Tensor) -> Tensor:
        ctx.save_for_backward(ids_T)
        ctx.shape, ctx.dtype = table_VE.shape, table_VE.dtype
        return table_VE[ids_T]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ids_T,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=ids_T.device)
        return total.index_add_(0, ids_T, grads[0].float()).to(ctx.dtype), None
