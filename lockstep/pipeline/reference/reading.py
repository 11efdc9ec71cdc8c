"""From hidden rows to the logprob of given tokens, read as a hypothesis says.

In: hidden rows, a head, a sample, which of its tokens. Out: float32 logprobs; -inf for a token outside the support.

Letters: N rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lockstep.core import SamplingParams, Support
from lockstep.kernels.adjust import History
from lockstep.kernels.head import CHUNK, Targets, head_logits, target_logprobs
from lockstep.kernels.linear import Packed
from lockstep.kernels.sampling import sample as draw
from lockstep.parity.hypothesis import Reading
from lockstep.parity.observation import Sample
from lockstep.train.targets import cut_support


def read(hidden_NE: Tensor, head: Packed, sample: Sample, tokens: range, reading: Reading) -> np.ndarray:
    """float32 [N] of the tokens `tokens` of a sample, whose rows are `hidden_NE`."""
    params = _params(sample, reading)
    ids_N = torch.from_numpy(sample.token_ids[tokens.start : tokens.stop].astype(np.int64))
    histories = _histories(sample, tokens, params, reading.late)
    temperature = (params.temperature or 1.0) / reading.scale
    support, outside_N = None, np.zeros(len(ids_N), bool)  # the recorded support is a fact; others are computed again
    if params.truncates and sample.support is not None and _cuts(params) == _cuts(sample.params or SamplingParams()):
        support = cut_support(sample.support, tokens)
        outside_N = _outside(support, ids_N.numpy())
    elif params.truncates:
        scaled = replace(params, temperature=temperature)
        support, outside_N = _support(hidden_NE, head, ids_N, scaled, histories)
    targets = Targets(ids_N, temperature, support, histories)
    with torch.no_grad():
        values_N = target_logprobs(hidden_NE, head, targets)[0].numpy().copy()
    values_N[outside_N] = -np.inf
    if reading.mode == "divided":
        values_N /= np.float32(_asked(sample, reading).temperature or 1.0)
    return values_N


def _cuts(params: SamplingParams) -> tuple[int, float, float]:
    return params.top_k, params.top_p, params.min_p


def _asked(sample: Sample, reading: Reading) -> SamplingParams:
    """What the sample's distribution was asked to be."""
    return replace(sample.params or SamplingParams(), **reading.fields)


def _params(sample: Sample, reading: Reading) -> SamplingParams:
    """The parameters that the reading lets act on the logits."""
    asked = _asked(sample, reading)
    if reading.mode == "processed":
        if asked.greedy:  # core.Contract.of: greedy tokens carry logprobs at T = 1, over the full support
            return replace(asked, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        return asked
    kept = SamplingParams(logit_bias=asked.logit_bias, bad_words=asked.bad_words)
    return kept if reading.mode == "masked" else SamplingParams()


def _histories(sample: Sample, tokens: range, params: SamplingParams, late: int) -> list[History | None]:
    if not params.adjusts:
        return []
    return [History(params, sample.prompt_ids, sample.token_ids[: max(t - late, 0)]) for t in tokens]


def _support(
    hidden_NE: Tensor, head: Packed, ids_N: Tensor, params: SamplingParams, histories: list[History | None]
) -> tuple[Support, np.ndarray]:
    """What the sampler's own filters keep of these rows, and which tokens lie outside of it.

    A token outside is added, so that the kernel has something to score; its value is then replaced.
    """
    kept: list[np.ndarray] = []
    for rows in _chunks(len(ids_N)):
        logits = head_logits(hidden_NE[rows], head)
        count = len(logits)
        drawn = draw(logits, [params] * count, [0.5] * count, histories[rows] if histories else ())
        kept += [found for found in drawn.supports if found is not None]
    ids = ids_N.numpy()
    outside_N = np.array([token not in found for token, found in zip(ids, kept, strict=True)], bool)
    whole = [np.union1d(k, [t]) if out else k for k, t, out in zip(kept, ids, outside_N, strict=True)]
    offsets = np.concatenate(([0], np.cumsum([len(found) for found in whole])))
    return Support(np.concatenate(whole).astype(np.int32), offsets.astype(np.int64)), outside_N


def _outside(support: Support, ids_N: np.ndarray) -> np.ndarray:
    """Which tokens their recorded support does not hold; the contract of a rollout rules that out."""
    sizes = np.diff(support.offsets)
    return np.add.reduceat(support.ids == np.repeat(ids_N, sizes), support.offsets[:-1]) == 0


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(at, min(at + CHUNK, rows)) for at in range(0, rows, CHUNK))
