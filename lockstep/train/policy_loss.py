"""The objective of one microbatch, corrected if the configuration says so.

In: a microbatch, the trainer's logprobs. Out: the loss, the tokens that the plain objective clips, the ledger's entry.

    plain      loss(trainer, sampler)                         r = exp(trainer - sampler)
    corrected  weight(anchor, sampler) * loss(trainer, anchor)  r = exp(trainer - anchor), exactly 1 in the first step

The second is decoupled PPO (Hilton 2021, arXiv:2110.00641): the weight answers for staleness, the clip bounds the step.
Without a correction the numbers are those of the plain objective, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lockstep.config import RunConfig
from lockstep.train.batch import Microbatch
from lockstep.train.corrections import CORRECTIONS
from lockstep.train.ledger import Entry, entry
from lockstep.train.losses import LOSSES


@dataclass(frozen=True, slots=True, eq=False)
class PolicyLoss:
    """`loss` scalar; `clipped_N` bool, raw: by the plain objective; `entry`: what the correction did, if one did."""

    loss: Tensor
    clipped_N: Tensor
    entry: Entry | None


def policy_loss(microbatch: Microbatch, logprobs_N: Tensor, config: RunConfig) -> PolicyLoss:
    """Evaluate `config.loss` under `config.corrections`. Removed tokens weigh 0; the others weigh no more for it."""
    objective, sequence_N = LOSSES[config.loss.type], microbatch.packed.sequence_N
    sampler_N, advantages_N, weights_N = microbatch.sampler_logprobs_N, microbatch.advantages_N, microbatch.weights_N
    if config.corrections.type == "none":
        plain = objective(logprobs_N, sampler_N, advantages_N, sequence_N, weights_N, config.loss)
        return PolicyLoss(plain.loss, plain.clipped_N, None)
    now_N = logprobs_N.detach()
    raw = objective(now_N, sampler_N, advantages_N, sequence_N, weights_N, config.loss)
    anchor_N = now_N if microbatch.anchor_logprobs_N is None else microbatch.anchor_logprobs_N
    corrected = CORRECTIONS[config.corrections.type](anchor_N, sampler_N, sequence_N, config.corrections)
    weighted_N = weights_N * corrected.weights_N
    output = objective(logprobs_N, anchor_N, advantages_N, sequence_N, weighted_N, config.loss)
    return PolicyLoss(output.loss, raw.clipped_N, entry(advantages_N, corrected, output.clipped_N))
