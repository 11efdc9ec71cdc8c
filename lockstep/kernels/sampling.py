"""One token per row from its own logits, parameters and uniform: adjustments, temperature, min-p, top-k, top-p, greedy.

In: logits fp32 [N, V], parameters and a uniform per row. Out: token ids with the logprob their contract promises.
The order of the filters is vLLM's: temperature, then min-p, then top-k, then top-p over what is left. Before them all,
adjust.py changes the logits of those rows that ask for it. On CPUs native/sampler.cpp does it, a row at a time.

Letters: N rows, V vocabulary, M rows that truncate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lockstep import numerics
from lockstep.core import SamplingParams
from lockstep.kernels.adjust import History, adjusted
from lockstep.kernels.distribution import operators_of


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """`token_ids` int64 [N]; `logprobs` float32 [N]; per row the kept ids int32, ascending, or None if all were."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    supports: tuple[np.ndarray | None, ...]


def sample(
    logits_NV: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    histories: Sequence[History | None] = (),
) -> Sampled:
    """Draw by inverting the cumulative distribution in the order of the ids. Greedy rows take the largest logit.

    A row that adjusts needs its history; `histories` may be empty if none does. Raises `NumericsError` if bad words
    leave no token.
    """
    histories = histories or (None,) * len(params)
    without = [i for i, (p, history) in enumerate(zip(params, histories, strict=True)) if p.adjusts and history is None]
    assert not without, f"row {without[0]} adjusts its logits: it needs a history"
    logits_NV = adjusted(logits_NV, histories)
    operators = operators_of(logits_NV)
    if operators is None:
        return _reference(logits_NV, params, uniforms)
    columns = (
        (p.temperature or 1.0, u, p.greedy, p.truncates, p.top_k, p.top_p, p.min_p)
        for p, u in zip(params, uniforms, strict=True)
    )
    settings = torch.tensor(list(columns), dtype=torch.float64)
    ids, logprobs, kept, offsets = (found.numpy() for found in operators.draw(logits_NV, settings))
    pieces = np.split(kept, offsets[1:-1])
    supports = tuple(piece if p.truncates else None for p, piece in zip(params, pieces, strict=True))
    return Sampled(ids, logprobs, supports)


def _reference(logits_NV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Sampled:
    """The same with PyTorch's operators: other late bits, on both sides alike."""
    device = logits_NV.device
    temperature = torch.tensor([p.temperature or 1.0 for p in params], dtype=torch.float32, device=device)
    keep, supports = _truncate(logits_NV, temperature, params)
    logprobs = numerics.log_softmax(numerics.processed_logits(logits_NV, temperature, keep))
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    uniform = torch.tensor(uniforms, dtype=torch.float32, device=device)[:, None]
    drawn = torch.searchsorted(cumulative, uniform * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last id with any mass: u * total may round up to total
    ids = torch.minimum(drawn, last).clamp_(max=logits_NV.shape[1] - 1)[:, 0]  # NaN logits give V; their logprob tells
    greedy = torch.tensor([p.greedy for p in params], device=device)
    if greedy.any():
        ids = torch.where(greedy, logits_NV.argmax(-1), ids)
    chosen = logprobs.gather(1, ids[:, None])[:, 0]
    return Sampled(ids.cpu().numpy(), chosen.cpu().numpy(), supports)


def _truncate(
    logits_NV: Tensor, temperature_N: Tensor, params: Sequence[SamplingParams]
) -> tuple[Tensor | None, tuple[np.ndarray | None, ...]]:
    """Boolean [N, V] of what every row keeps (None: no row truncates) and the kept ids of those rows that do."""
    rows = [i for i, p in enumerate(params) if p.truncates]
    if not rows:
        return None, (None,) * len(params)
    keep = torch.ones(logits_NV.shape, dtype=torch.bool, device=logits_NV.device)
    scaled_MV = numerics.processed_logits(logits_NV[rows], temperature_N[rows])
    keep[rows] = _kept(scaled_MV, [params[i] for i in rows])
    supports: list[np.ndarray | None] = [None] * len(params)
    for i in rows:
        supports[i] = keep[i].nonzero()[:, 0].to(torch.int32).cpu().numpy()
    return keep, tuple(supports)


def _kept(scaled_MV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Ties with the smallest kept value of top-k are kept too; top-p keeps the smallest set with mass >= p."""
    M, V = scaled_MV.shape
    device = scaled_MV.device
    floor = torch.tensor([[p.min_p] for p in params], dtype=torch.float32, device=device)
    probabilities = torch.softmax(scaled_MV, -1)
    keep = probabilities >= floor * probabilities.amax(-1, keepdim=True)
    ordered, order = scaled_MV.masked_fill(~keep, -float("inf")).sort(dim=-1, descending=True, stable=True)
    rank = torch.tensor([[min(p.top_k or V, V) - 1] for p in params], device=device)
    inside = ordered >= ordered.gather(1, rank)
    ordered = ordered.masked_fill(~inside, -float("inf"))
    mass = torch.softmax(ordered, -1)
    before = mass.cumsum(-1) - mass
    limit = torch.tensor([[p.top_p] for p in params], dtype=torch.float32, device=device)
    inside = torch.isfinite(ordered) & ((before < limit) | (limit >= 1.0))
    inside[:, 0] = True
    broken = torch.isnan(probabilities).any(-1, keepdim=True)  # such a row keeps all, so that its logprob tells
    return torch.zeros(M, V, dtype=torch.bool, device=device).scatter_(1, order, inside) | broken
