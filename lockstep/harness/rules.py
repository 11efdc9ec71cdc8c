"""What other frameworks check of the sampler and the trainer, with the numbers that they publish, on our observations.

In: an `Observation`. Out: for each rule whether it flags that step. A rule names no layer and no cause.

Two kinds. An **alarm** is a number of which its authors write (or assert in their tests) that beyond it something is
wrong. A **bound** is where a framework cuts or masks a token or a sequence, silently: nobody publishes how many may be
cut, so a step counts as flagged if one is. That is generous: whoever trains with it sees no flag, only a fraction.

What is alike for all, and how a rule is told here what its framework would see:

- tokens are those that the loss counts (`Sample.mask`), of samples of which both sides say something;
- the trainer's series is that at the weights which drew the tokens. The frameworks compare with the trainer's present
  weights, for which honest staleness is mismatch; without it a rule has fewer false alarms than at home;
- verl and TRL put series into tensors padded with 0.0, and NeMo-RL fills 0.0 where a token has no logprob: a missing
  one is compared as probability 1, one too many is cut off. prime-rl and slime compare lengths, and stop;
- nobody looks for NaN. It fails every comparison: `x > bound` is quiet, `assert x <= bound` is not.

Read in the repositories at verl b178a3c (2026-01-29), NeMo-RL 7ea279a (2026-08-22), prime-rl 559b447 (2026-08-21),
slime 624b824 (2026-08-21), TRL f2cd577 (2026-07-24). They compute in float32, this in float64.

Letters: T drawn tokens, K those of them that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.parity.observation import Observation, Sample

Pair = tuple[np.ndarray, np.ndarray]
"""Sampler and trainer logprobs of one sample, float64 [K] each, natural log."""

Judge = Callable[[Sequence[Pair]], bool]
"""Whether pairs, of which at least one has a token, are beyond a threshold."""

PROBABILITY_GAP = 0.01
"""verl: mean |difference of probabilities| above which the engine is said to be imprecise (below 0.005 is normal)."""

MEAN_WEIGHT, KL, CHI2 = (0.5, 2.0), 0.1, 1.0
"""verl: outside of which, or above which, its example of a health check warns."""

SAFETY = 20.0
"""Nats at which verl and slime clamp log ratios before they take their exponential."""

PROBABILITY_FACTOR = 1.05
"""NeMo-RL: mean exp |log ratio| above which the framework may be at fault."""

DIVERGENCE = 1e-3
"""NeMo-RL: mean divergence above which to investigate."""

NIGHTLY_KL = 0.0005
"""prime-rl: mean mismatch KL, as printed with four decimals, that its nightly run may have at most."""

PROBABILITY_STEP = 0.2
"""prime-rl: |difference of probabilities| above which a token is masked."""

MEAN_GAP = 0.1
"""slime: mean over samples of the mean |log ratio| that its tests assert by default."""

TOKEN_RATIOS = (0.5, 2.0)
"""slime: ratios between which a token is kept by its example of masked importance sampling."""

SEQUENCE_RATIO = 3.0
"""TRL: ratio of a whole sequence above which it is masked."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One framework's check. `source`: where it is published. `flags`: whether a step is beyond it; never raises.

    `alarm`: its authors call it a sign that something is wrong; otherwise it is the bound of a correction.
    """

    name: str
    source: str
    what: str
    flags: Callable[[Observation], bool]
    alarm: bool = True


def flagged(observation: Observation) -> list[str]:
    """The names of the rules that flag this step, in the order of `RULES`."""
    return [rule.name for rule in RULES if rule.flags(observation)]


def _rule(judge: Judge, *, lengths: bool = False) -> Callable[[Observation], bool]:
    """A rule of an observation. `lengths`: the framework stops at a series of another length than the tokens."""

    def flags(observation: Observation) -> bool:
        scored = [sample for sample in observation.samples if sample.paired]
        if lengths and any(_unequal(sample) for sample in scored):
            return True
        pairs = [pair for sample in scored if (pair := _pair(sample)) is not None]
        if not any(len(sampler) for sampler, _ in pairs):
            return False
        with np.errstate(all="ignore"):  # infinite and NaN are values here, as they are in the frameworks
            return bool(judge(pairs))

    return flags


def _unequal(sample: Sample) -> bool:
    assert sample.sampler is not None and sample.trainer is not None, "paired"
    return not len(sample.sampler) == len(sample.trainer) == len(sample.token_ids)


def _pair(sample: Sample) -> Pair | None:
    """What is compared of a sample; None if the trainer, which scores the tokens it was given, has not scored them."""
    assert sample.sampler is not None and sample.trainer is not None, "paired"
    count = len(sample.token_ids)
    if len(sample.trainer) != count:
        return None
    sampler = np.zeros(count)  # 0.0 is what the tensors are padded with
    known = min(count, len(sample.sampler))
    sampler[:known] = sample.sampler[:known]
    counted = np.ones(count, bool) if sample.mask is None or len(sample.mask) != count else sample.mask.astype(bool)
    return sampler[counted], sample.trainer.astype(np.float64)[counted]


def _pooled(pairs: Sequence[Pair]) -> Pair:
    return np.concatenate([sampler for sampler, _ in pairs]), np.concatenate([trainer for _, trainer in pairs])


def _log_ratios(pairs: Sequence[Pair]) -> np.ndarray:
    """float64 [all K]: trainer - sampler."""
    sampler, trainer = _pooled(pairs)
    return trainer - sampler


def _k3(log_ratio: np.ndarray) -> np.ndarray:
    """r - 1 - log r of each ratio, in nats: an estimate of KL(sampler | trainer) if r is trainer / sampler."""
    return np.expm1(log_ratio) - log_ratio


def _verl(pairs: Sequence[Pair]) -> bool:
    sampler, trainer = _pooled(pairs)
    return np.abs(np.exp(trainer) - np.exp(sampler)).mean() > PROBABILITY_GAP


def _verl_health(pairs: Sequence[Pair]) -> bool:
    """Weights of tokens. The check has two more terms, standard deviation > 1 and effective sample size < 0.3: they are
    of weights clamped to [0.5, 2], for which they are at most 0.75 and at least 0.64."""
    d = _log_ratios(pairs)
    weights = np.exp(np.clip(d, -SAFETY, SAFETY))
    low, high = MEAN_WEIGHT
    mean, chi2 = weights.mean(), np.square(weights).mean() - 1.0
    return mean < low or mean > high or abs(d.mean()) > KL or chi2 > CHI2


def _nemo(pairs: Sequence[Pair]) -> bool:
    return np.exp(np.abs(_log_ratios(pairs))).mean() > PROBABILITY_FACTOR


def _nemo_kl(pairs: Sequence[Pair]) -> bool:
    """Both directions. The third divergence (Jensen and Shannon's) is never above the larger of them."""
    d = _log_ratios(pairs)
    return _k3(d).mean() > DIVERGENCE or _k3(-d).mean() > DIVERGENCE


def _prime(pairs: Sequence[Pair]) -> bool:
    # the test reads the number from the log, where it has four decimals: 0.00054 passes
    return float(f"{_k3(_log_ratios(pairs)).mean():.4f}") > NIGHTLY_KL


def _prime_mask(pairs: Sequence[Pair]) -> bool:
    """In either direction: only one of them is masked for an advantage of a given sign, which is not known here."""
    sampler, trainer = _pooled(pairs)
    return bool((np.abs(np.exp(trainer) - np.exp(sampler)) > PROBABILITY_STEP).any())


def _slime(pairs: Sequence[Pair]) -> bool:
    means = [np.abs(trainer - sampler).mean() if len(sampler) else 0.0 for sampler, trainer in pairs]
    return not np.mean(means) <= MEAN_GAP  # an assertion, so that NaN fails it


def _slime_mask(pairs: Sequence[Pair]) -> bool:
    ratios = np.exp(np.clip(_log_ratios(pairs), -SAFETY, SAFETY))
    low, high = TOKEN_RATIOS
    return not ((ratios >= low) & (ratios <= high)).all()


def _trl(pairs: Sequence[Pair]) -> bool:
    return any(np.exp((trainer - sampler).sum()) > SEQUENCE_RATIO for sampler, trainer in pairs)


RULES: tuple[Rule, ...] = (
    Rule(
        "verl",
        "verl docs/faq/faq.rst (`rollout_probs_diff_mean`), verl/utils/debug/metrics.py",
        "mean absolute difference of the tokens' probabilities > 0.01",
        _rule(_verl),
    ),
    Rule(
        "verl health",
        "verl docs/algo/rollout_corr.md (an example of alerts, to copy), verl/trainer/ppo/rollout_corr_helper.py",
        "mean token ratio outside of [0.5, 2], mean log ratio beyond 0.1 nats, or chi-squared > 1",
        _rule(_verl_health),
    ),
    Rule(
        "NeMo-RL",
        "NeMo-RL docs/adding-new-models.md, docs/guides/dtensor-tp-accuracy.md, nemo_rl/algorithms/grpo.py "
        "(`token_mult_prob_error`)",
        "mean of exp(absolute log ratio) > 1.05",
        _rule(_nemo),
    ),
    Rule(
        "NeMo-RL KL",
        "NeMo-RL docs/guides/grpo.md (`gen_kl_error`, `policy_kl_error`), nemo_rl/algorithms/loss/loss_functions.py",
        "k3 divergence in either direction > 0.001 nats",
        _rule(_nemo_kl),
    ),
    Rule(
        "prime-rl",
        "prime-rl tests/nightly/test_hendrycks_sanity.py, src/prime_rl/trainer/rl/loss.py (`mismatch_kl`), batch.py "
        "(lengths); two other tests allow 0.01 and 0.15, its documentation names no number",
        "k3 divergence > 0.0005 nats after rounding to four decimals, or unequal lengths",
        _rule(_prime, lengths=True),
    ),
    Rule(
        "prime-rl mask",
        "prime-rl docs/algorithms.md (`dppo_mask_low`, `dppo_mask_high`), on by default",
        "a token's probability differs by more than 0.2, or unequal lengths",
        _rule(_prime_mask, lengths=True),
        alarm=False,
    ),
    Rule(
        "slime",
        "slime slime/utils/arguments.py (`--ci-train-rollout-logprob-abs-diff-threshold`, asserted under "
        "`--ci-test` only), slime/utils/types.py (lengths, always)",
        "mean absolute log ratio > 0.1 nats (samples weigh the same), or unequal lengths",
        _rule(_slime, lengths=True),
    ),
    Rule(
        "slime mask",
        "slime examples/train_infer_mismatch_helper/mis.yaml, mis.py; off by default",
        "a token's ratio outside of [0.5, 2], or unequal lengths",
        _rule(_slime_mask, lengths=True),
        alarm=False,
    ),
    Rule(
        "TRL",
        "TRL trl/trainer/grpo_config.py (`vllm_importance_sampling_mode`, `vllm_importance_sampling_clip_max`, once "
        "`..._cap`), on by default; no threshold for `sampling_logp_difference`",
        "a sequence's ratio > 3",
        _rule(_trl),
        alarm=False,
    ),
)
"""One or two of each framework."""
