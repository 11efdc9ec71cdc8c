"""The logprob of a given token, the entropy of its row, and their slope: rows alone, the sampler's bits.

In: logits fp32 [N, V], the tokens, temperature, recorded support. Out: logprobs, entropies; the slope of logprobs along
logits. On CPUs one C++ function per row (native/sampler.cpp) serves sampler and trainer alike: see `operators_of`.
Elsewhere, and where it cannot be had, both go through `numerics.log_softmax`, the reference.

Letters: N rows, V vocabulary, M kept ids of all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lockstep import numerics
from lockstep.kernels.native.library import operators_for


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Tokens int64 [N] of rows at one temperature; row n kept `kept_M[offsets[n]:offsets[n + 1]]` (None: all)."""

    ids_N: Tensor
    temperature: float
    kept: tuple[Tensor, Tensor] | None = None  # int32 [M], int64 [N + 1], on the CPU


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Logprobs and entropies fp32 [N] in nats; `passed` [N, ...] is what `slopes` wants to see again."""

    logprobs_N: Tensor
    entropy_N: Tensor
    passed: Tensor


def operators_of(logits_NV: Tensor) -> Any | None:
    """What decides, for whoever draws and whoever scores, which arithmetic gives the logprobs of these logits."""
    assert logits_NV.dtype is torch.float32, f"logits are fp32, got {logits_NV.dtype}"
    return operators_for(logits_NV)


def score(logits_NV: Tensor, chosen: Chosen) -> Scored:
    """Logprob of each chosen token under its row at the temperature, over the support."""
    operators = operators_of(logits_NV)
    if operators is not None:
        return Scored(*operators.score(logits_NV, chosen.ids_N, chosen.temperature, *(chosen.kept or (None, None))))
    logprobs_NV = _logprobs(logits_NV, chosen)
    finite_NV = logprobs_NV.clamp_min(torch.finfo(torch.float32).min)  # 0 * -infinity is not wanted
    entropy_N = -(logprobs_NV.exp() * finite_NV).sum(-1)
    return Scored(logprobs_NV.gather(1, chosen.ids_N[:, None])[:, 0], entropy_N, entropy_N.new_empty(len(entropy_N), 0))


def slopes(logits_NV: Tensor, chosen: Chosen, passed: Tensor, grad_N: Tensor, dtype: torch.dtype) -> Tensor:
    """d (sum of grad * logprob) / d logits, [N, V] in `dtype`: grad / T * (one-hot - p)."""
    operators = operators_of(logits_NV)
    if operators is not None:
        narrow = dtype is torch.bfloat16
        both = [passed.contiguous(), grad_N.contiguous()]
        kept = chosen.kept or (None, None)
        return operators.slope(logits_NV, chosen.ids_N, chosen.temperature, *kept, both, narrow).to(dtype)
    slope_NV = _logprobs(logits_NV, chosen).exp_().neg_()
    slope_NV[torch.arange(len(slope_NV), device=slope_NV.device), chosen.ids_N] += 1.0
    return slope_NV.mul_(grad_N[:, None] / chosen.temperature).to(dtype)


def _logprobs(logits_NV: Tensor, chosen: Chosen) -> Tensor:
    temperature_N = torch.full((len(logits_NV),), chosen.temperature, device=logits_NV.device)
    return numerics.log_softmax(numerics.processed_logits(logits_NV, temperature_N, _keep(logits_NV, chosen)))


def _keep(logits_NV: Tensor, chosen: Chosen) -> Tensor | None:
    """Boolean [N, V] of the support."""
    if chosen.kept is None:
        return None
    ids_M, offsets = chosen.kept
    keep_NV = torch.zeros(logits_NV.shape, dtype=torch.bool)
    owner_M = torch.repeat_interleave(torch.arange(len(logits_NV)), offsets.diff())
    keep_NV[owner_M, ids_M.long()] = True
    return keep_NV.to(logits_NV.device)
