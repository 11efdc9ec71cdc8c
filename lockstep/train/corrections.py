"""Corrections for stale tokens, as pure functions in one table. Off by default, and never there to mend a backend.

In: the trainer's logprobs before the batch's first step (the anchor) and the sampler's, one a token. Out: a weight for
each token's loss, and why it is what it is. With lr = anchor - sampler per token and r = exp(lr):

    name          weight                                            literature
    token_tis     min(r, cap)                                       Yao 2025, "Your efficient RL framework secretly
                                                                    brings you off-policy RL training"
    sequence_tis  min(exp(sum over the sequence of lr), cap)        Liu 2025, "When speed kills stability"; verl, TRL
    masked        r if low <= r <= high, else 0                     IcePop (Ring-1T), Ling 2025, arXiv:2510.18855
    geometric     1 if low <= exp(mean over the sequence of lr)     verl (geometric rejection), prime-rl (geo_mask)
                  <= high, else 0, for the whole sequence
    tv_mask       1 if |exp(anchor) - exp(sampler)| <= cap, else 0  after DPPO, Qi 2026, arXiv:2602.04879 (binary TV)

What `tv_mask` compares is the change of the probability of the one token that was drawn. It is a lower bound of the
total variation between the two distributions at that position, namely that of the event "this token". DPPO drops a
token only if the change also goes in the direction of its advantage; here it is dropped either way.

With the parity gate green the mismatch part of lr is exactly 0: all of it is the update, the staleness of the rollouts.

Letters: N tokens, S sequences.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lockstep.config import CorrectionsConfig, RunConfig
from lockstep.errors import ConfigError, message
from lockstep.train.losses import by_sequence


class Cause(enum.IntEnum):
    """Why a token weighs what it weighs. All but the first two remove it: its weight is 0."""

    NONE = 0
    CAPPED = 1  # the ratio was above the cap, which is now the weight
    TOO_HIGH = 2
    TOO_LOW = 3  # below the lower bound, or a ratio so small that float32 holds it as 0
    TV = 4


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """`weights_N` float32, finite, >= 0; `causes_N` uint8, values of `Cause`. A weight is 0 exactly if removed."""

    weights_N: Tensor
    causes_N: Tensor


Correction = Callable[[Tensor, Tensor, Tensor, CorrectionsConfig], Corrected]
"""(anchor_logprobs_N, sampler_logprobs_N, sequence_N, config). `sequence_N` is as in `losses.Loss`."""

OWN_CAP = {"token_tis": 2.0, "sequence_tis": 2.0, "tv_mask": 0.2}  # verl's for both TIS, prime-rl's for the difference
OF_TOKENS = ("token_tis", "masked", "tv_mask")  # these may treat the tokens of one sequence unlike


def token_tis(anchor_N: Tensor, sampler_N: Tensor, sequence_N: Tensor, config: CorrectionsConfig) -> Corrected:
    """Truncated importance sampling of each token."""
    del sequence_N
    return _truncated(_log_ratio(anchor_N, sampler_N), cap_of(config))


def sequence_tis(anchor_N: Tensor, sampler_N: Tensor, sequence_N: Tensor, config: CorrectionsConfig) -> Corrected:
    """Truncated importance sampling of the whole sequence: one weight for all its tokens."""
    log_ratio_S = by_sequence(_log_ratio(anchor_N, sampler_N), sequence_N).sum(1)
    return _truncated(log_ratio_S[sequence_N], cap_of(config))


def masked(anchor_N: Tensor, sampler_N: Tensor, sequence_N: Tensor, config: CorrectionsConfig) -> Corrected:
    """Importance sampling of the tokens whose ratio lies within the bounds; the others are dropped."""
    del sequence_N
    ratio_N = torch.exp(_log_ratio(anchor_N, sampler_N))
    return _corrected(ratio_N, _outside(ratio_N, config))


def geometric(anchor_N: Tensor, sampler_N: Tensor, sequence_N: Tensor, config: CorrectionsConfig) -> Corrected:
    """Sequences whose geometric mean ratio lies within the bounds, unweighted; the others are dropped."""
    log_ratio_S = by_sequence(_log_ratio(anchor_N, sampler_N), sequence_N).sum(1) / torch.bincount(sequence_N)
    ratio_N = torch.exp(log_ratio_S)[sequence_N]
    return _corrected(torch.ones_like(ratio_N), _outside(ratio_N, config))


def tv_mask(anchor_N: Tensor, sampler_N: Tensor, sequence_N: Tensor, config: CorrectionsConfig) -> Corrected:
    """Tokens whose own probability has not moved by more than the cap, unweighted; the others are dropped."""
    del sequence_N
    change_N = (torch.exp(anchor_N.double()) - torch.exp(sampler_N.double())).abs()
    causes_N = torch.where(change_N > cap_of(config), Cause.TV.value, Cause.NONE.value)
    return _corrected(torch.ones_like(change_N), causes_N)


CORRECTIONS: dict[str, Correction] = {
    "token_tis": token_tis,
    "sequence_tis": sequence_tis,
    "masked": masked,
    "geometric": geometric,
    "tv_mask": tv_mask,
}


def cap_of(config: CorrectionsConfig) -> float:
    """`config.cap`, or what the literature uses for this type."""
    return config.cap or OWN_CAP[config.type]


def require_sound(config: RunConfig) -> None:
    """Raise `ConfigError` for a correction that cannot do what its name says."""
    kind, cap = config.corrections.type, config.corrections.cap
    if kind.endswith("_tis") and 0 < cap < 1:
        _refuse("cap", "a cap below 1 would shrink tokens that are not stale", cap, "at least 1", "Raise it")
    if kind == "tv_mask" and cap > 1:
        _refuse("cap", "no two probabilities are further apart than 1", cap, "at most 1", "Lower it")
    if kind in OF_TOKENS and config.loss.type == "gspo":
        rule = "gspo has one ratio a sequence, through which a removed token would still be trained on"
        _refuse("type", rule, kind, "sequence_tis or geometric", "Change it, or loss.type")


def _refuse(key: str, rule: str, got: object, expected: str, do: str) -> None:
    raise ConfigError(message(f"config (corrections.{key})", rule, got=got, expected=expected, do=do))


def _log_ratio(anchor_N: Tensor, sampler_N: Tensor) -> Tensor:
    """In float64, where the difference of two float32 numbers of like size is exact."""
    return anchor_N.double() - sampler_N.double()


def _truncated(log_ratio_N: Tensor, cap: float) -> Corrected:
    ratio_N = torch.exp(log_ratio_N)  # infinite beyond 709 nats, and so capped
    return _corrected(ratio_N.clamp(max=cap), torch.where(ratio_N > cap, Cause.CAPPED.value, Cause.NONE.value))


def _outside(ratio_N: Tensor, config: CorrectionsConfig) -> Tensor:
    high_N = torch.where(ratio_N > config.high, Cause.TOO_HIGH.value, Cause.NONE.value)
    return torch.where(ratio_N < config.low, Cause.TOO_LOW.value, high_N)


def _corrected(weights_N: Tensor, causes_N: Tensor) -> Corrected:
    kept_N = causes_N <= Cause.CAPPED.value
    weights_N = torch.where(kept_N, weights_N, 0.0).float()
    causes_N = torch.where(kept_N & (weights_N == 0), Cause.TOO_LOW.value, causes_N)
    return Corrected(weights_N, causes_N.to(torch.uint8))
