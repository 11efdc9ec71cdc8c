"""OBJ: is what was made of the numbers what it is called? Reported metrics, computed again from the tokens.

In: a look. Out: evidence. These come last: an objective can only be judged once the numbers below it are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lockstep.numerics import ratio_metrics
from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Weights
from lockstep.parity.observation import Sample
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.side import CannotAsk

NAMES = ("ratio_new_old", "kl_new_old", "mean_abs_log_ratio_new_old")
"""Metrics that are means over tokens and so can be recomputed; clipping needs the objective's bounds."""

SAME = 1e-3
"""Relative distance at which two computations of one metric agree: what float32 sums of many tokens lose."""

UNLIKELY = -10.0
"""Nats of a completion that is not drawn twice by chance, with the same bits, in two batches."""

Log = Callable[[Sample], np.ndarray]
"""float64 [T] of a sample's log ratio, or the part of it that a metric is made of."""

RIGHT = 0.25
"""Part of the trainer's distance that the sampler's may have where it is the trainer that is off: noise is on both."""


def metrics(look: Look) -> Sequence[Evidence]:
    """OBJ01: metrics are those of what a mask left over; OBJ06: those of ratios that a correction has made."""
    reported = {name: value for name in NAMES if (value := look.observation.metrics.get(name)) is not None}
    samples = look.samples
    if not reported or not samples:
        raise CannotAsk(f"metrics: the run reports none of {', '.join(NAMES)}, or no tokens to compute them from")
    raw = _recomputed(samples, _log_ratio)
    if _agree(reported, raw):
        return ()
    found = []
    if any(sample.mask is not None for sample in samples) and _agree(reported, _recomputed(samples, _masked)):
        found.append(
            _evidence("OBJ01", "the reported metrics are those of the tokens that the mask left", reported, raw)
        )
    if _agree(reported, _recomputed(samples, _anchored)):
        why = "the reported metrics start from the trainer's logprobs, not from those of who sampled"
        found.append(_evidence("OBJ06", why, reported, raw))
    return found


def weights(look: Look) -> Sequence[Evidence]:
    """OBJ02: a sequence's reported weight is that of the sum of its log ratios, not of their mean."""
    told = [sample for sample in look.samples if sample.ratio is not None and len(sample.token_ids) > 1]
    if not told:
        raise CannotAsk("sequence weights: none was reported")
    reported = np.array([sample.ratio for sample in told], np.float64)
    with np.errstate(over="ignore"):  # a broken engine may well reach infinity
        mean = np.exp([_log_ratio(sample).mean() for sample in told])
        total = np.exp([_log_ratio(sample).sum() for sample in told])
    if np.allclose(reported, mean, rtol=SAME) or not np.allclose(reported, total, rtol=SAME):
        return ()
    why = (
        f"the weights of {len(told)} sequences are exp(sum of log ratios), {reported.mean():.3g} on average, "
        f"where exp(mean) is {mean.mean():.3g}"
    )
    return [
        Evidence("OBJ02", why, certain=True, figures={"reported": float(reported.mean()), "mean": float(mean.mean())})
    ]


def repetition(look: Look) -> Sequence[Evidence]:
    """OBJ04: samples that were trained on before."""
    samples = look.observation.samples
    twice = [sample for sample in samples if sample.id in look.observation.history]
    if not twice:
        before = {_content(s) for seen in look.before for s in seen.samples if s.sampler is not None}
        twice = [s for s in samples if s.sampler is not None and _unlikely(s) and _content(s) in before]
    if len(twice) * 2 < len(samples) or not twice:
        return ()
    why = f"{len(twice)} of {len(samples)} samples were in an earlier batch ({twice[0].id})"
    return [Evidence("OBJ04", why, certain=True, figures={"samples": len(twice)})]


def replaced(look: Look) -> Sequence[Evidence]:
    """OBJ05: the reference policy's logprobs are the sampler's, bit for bit, though it has other weights."""
    told = [s for s in look.samples if s.reference is not None and len(s.reference) == len(s.token_ids)]
    if not told:
        raise CannotAsk("reference policy: no logprobs of one were reported")
    same = sum(np.array_equal(s.reference.view(np.int32), s.sampler.view(np.int32)) for s in told)  # type: ignore[union-attr]
    if same < len(told):
        return ()
    if look.reference is None:
        raise CannotAsk("reference policy: nothing here can compute what it would say")
    oldest = look.reference.versions[0]
    honest = look.score(Hypothesis(weights=Weights(version=oldest)))
    far = np.mean([np.abs(h - s.sampler).mean() for h, s in zip(honest, look.samples, strict=True)])
    if not far > 2 * look.grain:
        return ()
    why = (
        f"the reference policy's logprobs of all {len(told)} samples have the bits of the sampler's; "
        f"those of version {oldest} are {far:.3g} nats a token away"
    )
    return [Evidence("OBJ05", why, certain=True, figures={"nats_per_token": float(far)})]


def staleness(look: Look) -> Sequence[Evidence]:
    """OBJ03: the sampler is right about its own weights; the trainer scores with newer ones. Named, not blamed."""
    trainer = float(look.distance("trainer").sum())
    if not trainer > 0 or float(look.distance("sampler").sum()) > RIGHT * trainer:
        return ()
    number = look.observation.trainer.number
    if number is None:
        raise CannotAsk("staleness: the trainer does not say its version")
    share = look.explained(Hypothesis(weights=Weights(version=number)), "trainer")
    if share < ENOUGH:
        return ()
    drawn_at = [s.versions for s in look.samples if s.versions is not None and len(s.versions)]
    lag = float(np.mean([number - versions.astype(np.float64).mean() for versions in drawn_at])) if drawn_at else np.nan
    why = f"honest staleness, not a fault: tokens were drawn {lag:.2g} versions before {number}, which scored them"
    return [Evidence("OBJ03", f"{why}; this explains {share:.1%}", share, figures={"lag": lag, "explained": share})]


def _evidence(code: str, why: str, reported: Mapping[str, float], raw: Mapping[str, float]) -> Evidence:
    name = max(reported, key=lambda n: abs(reported[n] - raw[n]) / max(abs(raw[n]), 1e-12))
    said = f"{why}: {name} is reported as {reported[name]:.4g}, over all tokens it is {raw[name]:.4g}"
    return Evidence(code, said, certain=True, figures={"reported": dict(reported), "recomputed": dict(raw)})


def _recomputed(samples: Sequence[Sample], log: Log) -> dict[str, float]:
    values = np.concatenate([log(sample) for sample in samples])
    if not len(values):
        return dict.fromkeys(NAMES, float("nan"))
    found = ratio_metrics(values)
    return {name: found[name] for name in NAMES}


def _agree(reported: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(np.isclose(value, other[name], rtol=SAME, atol=1e-6) for name, value in reported.items())


def _now(sample: Sample) -> np.ndarray:
    now = sample.trainer if sample.current is None else sample.current
    assert now is not None, "comparable"
    return now.astype(np.float64)


def _log_ratio(sample: Sample) -> np.ndarray:
    assert sample.sampler is not None, "comparable"
    return _now(sample) - sample.sampler


def _masked(sample: Sample) -> np.ndarray:
    whole = _log_ratio(sample)
    return whole if sample.mask is None else whole[sample.mask.astype(bool)]


def _anchored(sample: Sample) -> np.ndarray:
    assert sample.trainer is not None, "comparable"
    return _now(sample) - sample.trainer


def _unlikely(sample: Sample) -> bool:
    """Whether nobody draws this twice by chance. What is not finite says nothing of chance."""
    assert sample.sampler is not None, "asked for"
    return float(sample.sampler.sum(where=np.isfinite(sample.sampler))) < UNLIKELY


def _content(sample: Sample) -> bytes:
    assert sample.sampler is not None, "asked for"
    return sample.token_ids.tobytes() + sample.sampler.tobytes()
