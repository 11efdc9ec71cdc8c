"""The objectives, as pure functions in one table, and the metrics that are computed beside them.

In: logprobs of the trainer (differentiable) and of the sampler, advantages and weights, one a token. Out: the loss (a
sum of weighted token losses; the weights hold the normalisation) and which tokens were clipped.

    name       token loss, with r = exp(trainer - sampler) and A the advantage          clipped where
    grpo, ppo  -min(r A, clip(r) A)                  Schulman 2017, arXiv:1707.06347    r outside [1 - low, 1 + high]
    gspo       -min(s A, clip(s) A), s = exp(mean over the sequence of log r)           s outside, all its tokens
               Zheng 2025, arXiv:2507.18071, eq. 5-7: one ratio, one clip a sequence
    cispo      -clip(r) A log p, no gradient through clip(r)  MiniMax 2025, 2506.13585  r outside
    reinforce  -A log p                              Williams 1992                      never

`grpo` and `ppo` are one function: what sets GRPO apart is where its advantages come from. All others have
the gradient of `reinforce` where r is exactly 1.

Letters: N tokens, S sequences, L longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lockstep import numerics
from lockstep.config import LossConfig


@dataclass(frozen=True, slots=True, eq=False)
class LossOutput:
    """`loss` scalar; `clipped_N` bool: whose ratio lies outside the interval, whatever the sign of the advantage."""

    loss: Tensor
    clipped_N: Tensor


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, LossConfig], LossOutput]
"""(trainer_logprobs_N, sampler_logprobs_N, advantages_N, sequence_N, weights_N, config). `sequence_N` is ascending and
counts from 0: which sequence a token belongs to. Sequences are whole."""


def clipped_ratio(
    trainer_N: Tensor,
    sampler_N: Tensor,
    advantages_N: Tensor,
    sequence_N: Tensor,
    weights_N: Tensor,
    config: LossConfig,
) -> LossOutput:
    """PPO's clipped surrogate, token by token."""
    del sequence_N
    loss_N, clipped_N = _surrogate(torch.exp(trainer_N - sampler_N), advantages_N, config)
    return LossOutput((weights_N * loss_N).sum(), clipped_N)


def gspo(
    trainer_N: Tensor,
    sampler_N: Tensor,
    advantages_N: Tensor,
    sequence_N: Tensor,
    weights_N: Tensor,
    config: LossConfig,
) -> LossOutput:
    """The surrogate of one length-normalised ratio a sequence; a sequence weighs the sum of its tokens' weights."""
    log_ratio_S = by_sequence(trainer_N - sampler_N, sequence_N).sum(1) / torch.bincount(sequence_N)
    weights_S = by_sequence(weights_N, sequence_N).sum(1)
    advantages_S = by_sequence(advantages_N, sequence_N)[:, 0]
    loss_S, clipped_S = _surrogate(torch.exp(log_ratio_S), advantages_S, config)
    return LossOutput((weights_S * loss_S).sum(), clipped_S[sequence_N])


def reinforce(
    trainer_N: Tensor,
    sampler_N: Tensor,
    advantages_N: Tensor,
    sequence_N: Tensor,
    weights_N: Tensor,
    config: LossConfig,
) -> LossOutput:
    """The plain score function; it asks for no ratio and so corrects for no lag."""
    del sampler_N, sequence_N, config
    return LossOutput(-(weights_N * advantages_N * trainer_N).sum(), torch.zeros_like(trainer_N, dtype=torch.bool))


def cispo(
    trainer_N: Tensor,
    sampler_N: Tensor,
    advantages_N: Tensor,
    sequence_N: Tensor,
    weights_N: Tensor,
    config: LossConfig,
) -> LossOutput:
    """REINFORCE weighted by the clipped ratio, which is a constant: clipped tokens keep a gradient."""
    del sequence_N
    ratio_N = torch.exp(trainer_N.detach() - sampler_N)
    bounded_N = ratio_N.clamp(1.0 - config.epsilon_low, 1.0 + config.epsilon_high)
    return LossOutput(-(weights_N * bounded_N * advantages_N * trainer_N).sum(), bounded_N != ratio_N)


LOSSES: dict[str, Loss] = {
    "grpo": clipped_ratio,
    "gspo": gspo,
    "ppo": clipped_ratio,
    "reinforce": reinforce,
    "cispo": cispo,
}


def by_sequence(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    """The values as a table [S, L], a row a sequence, 0 beyond its end; `sequence_N` as in `Loss`.

    Every cell is written once, so that no device has to add in an order of its own.
    """
    count_S = torch.bincount(sequence_N)
    offset_N = torch.arange(len(sequence_N), device=sequence_N.device) - (count_S.cumsum(0) - count_S)[sequence_N]
    return values_N.new_zeros(len(count_S), int(count_S.max())).index_put((sequence_N, offset_N), values_N)


def reference_kl(trainer_N: Tensor, reference_N: Tensor) -> Tensor:
    """`numerics.k3` of KL(trainer || reference) per token [N], differentiable in the trainer's logprobs: >= 0."""
    log_ratio_N = reference_N - trainer_N
    return torch.expm1(log_ratio_N) - log_ratio_N


def ratio_metrics(trainer: np.ndarray, sampler: np.ndarray, clipped: np.ndarray) -> dict[str, float]:
    """`numerics.ratio_metrics` of trainer - sampler, raw: before any clip or mask, and the fraction that was clipped.

    All inputs are [N], N > 0.
    """
    log_ratio = np.asarray(trainer, np.float64) - np.asarray(sampler, np.float64)
    return {**numerics.ratio_metrics(log_ratio), "clamp_log_ratio_new_old_indicator": float(np.mean(clipped))}


def _surrogate(ratio: Tensor, advantages: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    bounded = ratio.clamp(1.0 - config.epsilon_low, 1.0 + config.epsilon_high)
    return -torch.minimum(ratio * advantages, bounded * advantages), (bounded != ratio).detach()
