"""From hidden states to the logprob of given tokens, in chunks: no [rows, vocabulary] tensor for all rows, ever.

In: hidden rows, head weight, target ids, temperature, recorded support, histories of rows whose logits are adjusted.
Out: logprobs (differentiable) and entropies. The logits are those of the engine (`head_logits`), adjusted by the
sampler's adjust.py, and the logprob is that of distribution.py: same bits as the sampler's.

Letters: N rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockstep.core import Support
from lockstep.kernels.adjust import Adjustment, History, Slopes
from lockstep.kernels.distribution import Chosen, score, slopes
from lockstep.kernels.linear import Packed, linear

CHUNK = 128
"""Rows worked on at once: 25 MB of fp32 logits at a vocabulary of 49,152. A multiple of the blocks of `linear`."""

SLOPE_BYTES = 96 << 20
"""What the backward keeps of slopes, in the model's dtype, for one product with the hidden rows: 1,024 rows in bf16 at
a vocabulary of 49,152. A product for each chunk would read and write all of the weight's gradient each time."""


def head_logits(hidden_NE: Tensor, weight_VE: Tensor | Packed) -> Tensor:
    """Logits fp32 [N, V], the product taken in the dtype of `weight`; of a wide packed one, its fp32 sums."""
    dtype = weight_VE.content.dtype if isinstance(weight_VE, Packed) else weight_VE.dtype
    return linear(hidden_NE.to(dtype), weight_VE).float()


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Tokens whose logprob is wanted: ids int64 [N], temperature, and per row what the sampler kept (None: all).

    `histories`: one a row, None where logits are not adjusted; empty if none are.
    """

    ids_N: Tensor
    temperature: float
    support: Support | None = None
    histories: Sequence[History | None] = ()

    def chosen(self, rows: slice) -> Chosen:
        """Some rows of it, as distribution.py takes them."""
        if self.support is None:
            return Chosen(self.ids_N[rows], self.temperature)
        offsets = self.support.offsets[rows.start : rows.stop + 1]
        kept = self.support.ids[offsets[0] : offsets[-1]].astype(np.int32)
        both = torch.from_numpy(kept), torch.from_numpy((offsets - offsets[0]).astype(np.int64))
        return Chosen(self.ids_N[rows], self.temperature, both)


def target_logprobs(hidden_NE: Tensor, weight_VE: Tensor | Packed, targets: Targets) -> tuple[Tensor, Tensor]:
    """Logprob of each target fp32 [N], differentiable in both inputs; entropy of each row in nats fp32 [N], not."""
    leaf_VE = weight_VE.weight_OI if isinstance(weight_VE, Packed) else weight_VE
    return _TargetLogprobs.apply(hidden_NE, leaf_VE, weight_VE, targets)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(at, min(at + CHUNK, rows)) for at in range(0, rows, CHUNK))


def _groups(rows: int, row_bytes: int) -> Iterator[slice]:
    """Rows whose slopes are kept together, whole chunks."""
    size = max(SLOPE_BYTES // (row_bytes * CHUNK), 1) * CHUNK
    return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


def _logits(
    hidden_NE: Tensor, weight_VE: Tensor | Packed, targets: Targets, rows: slice
) -> tuple[Tensor, Slopes | None]:
    """Adjusted logits [n, V] of some rows, and the slopes of their adjustments (None: there are none)."""
    logits = head_logits(hidden_NE[rows], weight_VE)
    adjustment = Adjustment.of(targets.histories[rows], logits.shape[1], logits.device)
    return (logits, None) if adjustment is None else adjustment.apply(logits)


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden_NE, leaf_VE, weight_VE, targets = inputs
        scored = [
            score(_logits(hidden_NE, weight_VE, targets, rows)[0], targets.chosen(rows))
            for rows in _chunks(hidden_NE.shape[0])
        ]
        ctx.save_for_backward(hidden_NE, leaf_VE, torch.cat([one.passed for one in scored]))
        ctx.targets, ctx.packed = targets, weight_VE if isinstance(weight_VE, Packed) else None
        entropy_N = torch.cat([one.entropy_N for one in scored])
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat([one.logprobs_N for one in scored]), entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Logits are computed again; their gradient is (one-hot - p) / T, times the slope of the adjustments.

        Products in the model's dtype.
        """
        hidden_NE, leaf_VE, passed = ctx.saved_tensors
        targets: Targets = ctx.targets
        weight_VE: Tensor | Packed = leaf_VE if ctx.packed is None else ctx.packed
        dtype = hidden_NE.dtype
        narrow_VE = leaf_VE.to(dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden_NE), None
        for group in _groups(len(hidden_NE), leaf_VE.shape[0] * dtype.itemsize):
            slope_GV = hidden_NE.new_empty(group.stop - group.start, leaf_VE.shape[0])
            for part in _chunks(len(slope_GV)):
                rows = slice(group.start + part.start, group.start + part.stop)
                logits, bends = _logits(hidden_NE, weight_VE, targets, rows)
                wanted = dtype if bends is None else torch.float32
                slope = slopes(logits, targets.chosen(rows), passed[rows], grads[0][rows], wanted)
                if bends is not None:
                    bends.pull_back(slope)
                slope_GV[part] = slope
            grad_hidden[group] = slope_GV @ narrow_VE
            found = slope_GV.T @ hidden_NE[group]
            grad_weight = found if grad_weight is None else grad_weight.float().add_(found)
        return grad_hidden, None if grad_weight is None else grad_weight.to(leaf_VE.dtype), None, None
