"""From hidden states to the logprob of given tokens, in chunks: no [rows, vocabulary] tensor for all rows, ever.

In: hidden rows, head weight, target ids, temperature, recorded support, histories of rows whose logits are adjusted.
Out: logprobs (differentiable) and entropies. The logits are those of the engine (`head_logits`), adjusted by the
sampler's adjust.py, and the logprob is `numerics.log_softmax`: same bits as the sampler's.

Letters: N rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockstep import numerics
from lockstep.core import Support
from lockstep.kernels.adjust import Adjustment, History, Slopes
from lockstep.kernels.linear import Packed, linear

CHUNK = 128
"""Rows worked on at once: 25 MB of fp32 logits at a vocabulary of 49,152. A multiple of the blocks of `linear`."""


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

    def keep(self, rows: slice, vocabulary: int) -> Tensor | None:
        """Boolean [n, V] of the recorded support of some rows."""
        if self.support is None:
            return None
        offsets = self.support.offsets[rows.start : rows.stop + 1]
        keep = torch.zeros(rows.stop - rows.start, vocabulary, dtype=torch.bool)
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        kept = self.support.ids[offsets[0] : offsets[-1]].astype(np.int64)
        keep[torch.from_numpy(owner), torch.from_numpy(kept)] = True
        return keep.to(self.ids_N.device)


def target_logprobs(hidden_NE: Tensor, weight_VE: Tensor | Packed, targets: Targets) -> tuple[Tensor, Tensor]:
    """Logprob of each target fp32 [N], differentiable in both inputs; entropy of each row in nats fp32 [N], not."""
    leaf_VE = weight_VE.weight_OI if isinstance(weight_VE, Packed) else weight_VE
    return _TargetLogprobs.apply(hidden_NE, leaf_VE, weight_VE, targets)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(at, min(at + CHUNK, rows)) for at in range(0, rows, CHUNK))


def _logprobs(
    hidden_NE: Tensor, weight_VE: Tensor | Packed, targets: Targets, rows: slice
) -> tuple[Tensor, Slopes | None]:
    """Logprobs [n, V] of some rows, and the slopes of their adjustments (None: there are none)."""
    logits = head_logits(hidden_NE[rows], weight_VE)
    adjustment, slopes = Adjustment.of(targets.histories[rows], logits.shape[1], logits.device), None
    if adjustment is not None:
        logits, slopes = adjustment.apply(logits)
    temperature = torch.full((logits.shape[0],), targets.temperature, device=logits.device)
    keep = targets.keep(rows, logits.shape[1])
    return numerics.log_softmax(numerics.processed_logits(logits, temperature, keep)), slopes


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden_NE, leaf_VE, weight_VE, targets = inputs
        chosen, entropy = [], []
        for rows in _chunks(hidden_NE.shape[0]):
            logprobs, slopes = _logprobs(hidden_NE, weight_VE, targets, rows)
            chosen.append(logprobs.gather(1, targets.ids_N[rows, None])[:, 0])
            masked = targets.support is not None or slopes is not None
            finite = logprobs.clamp_min(torch.finfo(torch.float32).min) if masked else logprobs
            entropy.append(-(logprobs.exp() * finite).sum(-1))
        ctx.save_for_backward(hidden_NE, leaf_VE)
        ctx.targets, ctx.packed = targets, weight_VE if isinstance(weight_VE, Packed) else None
        entropy_N = torch.cat(entropy)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(chosen), entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Logits are computed again; their gradient is (one-hot - p) / T, times the slope of the adjustments.

        Products in the model's dtype.
        """
        hidden_NE, leaf_VE = ctx.saved_tensors
        targets: Targets = ctx.targets
        weight_VE: Tensor | Packed = leaf_VE if ctx.packed is None else ctx.packed
        dtype = hidden_NE.dtype
        narrow_VE = leaf_VE.to(dtype)
        grad_hidden = torch.empty_like(hidden_NE)
        grad_weight = torch.zeros_like(leaf_VE, dtype=torch.float32)
        for rows in _chunks(hidden_NE.shape[0]):
            logprobs, slopes = _logprobs(hidden_NE, weight_VE, targets, rows)
            slope = logprobs.exp_().neg_()
            slope[torch.arange(slope.shape[0], device=slope.device), targets.ids_N[rows]] += 1.0
            if slopes is not None:
                slopes.pull_back(slope)
            slope = slope.mul_(grads[0][rows, None] / targets.temperature).to(dtype)
            grad_hidden[rows] = slope @ narrow_VE
            grad_weight += slope.T @ hidden_NE[rows]
        return grad_hidden, grad_weight.to(leaf_VE.dtype), None, None
